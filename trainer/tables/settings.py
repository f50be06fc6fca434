"""The thresholds of the tables, set by `tables:` in a plan or by `tables.<name>=value`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from trainer.settings.settings import Section, check_keys, validated
from trainer.tables.boxes import PRESENCE, ROLLING_ROWS, Z_PRESENCE


class TableSettings(Section):
    """Thresholds of study_boxes; the other tables have none. The defaults are those of reference 3.3."""

    model_config = ConfigDict(validate_default=True)
    """so that a default of 0 and a given 0 have the same string form, which is compared"""

    over_seeds: Literal["mean", "extreme"] = "mean"
    """mean: average the seeds slice by slice, as the reference documents; extreme: their min and max, as in its code"""
    presence: float = Field(PRESENCE, ge=0, lt=1)
    z_presence: float = Field(Z_PRESENCE, ge=0, lt=1)
    rolling_rows: int = Field(ROLLING_ROWS, ge=1, le=10_000)
    box_margin: float = Field(0, ge=0, le=10_000)
    """native pixels added to each side of a box, for networks whose input is much smaller than a slice"""

    def of(self, table: str) -> dict[str, str]:
        """The settings that decide a table, by name."""
        return {name: str(value) for name, value in self if table == "study_boxes"}


def table_settings(given: Mapping[str, Any]) -> TableSettings:
    """Settings by name, as strings, converted. Raises UsageError for unknown names and invalid values."""
    check_keys(given, TableSettings, "tables.")
    return validated(TableSettings, given, "tables.")
