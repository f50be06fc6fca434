"""The thresholds of the tables, as a plan's `tables:` or `tables.<name>=value` sets them."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import nearest
from trainer.settings.settings import Section
from trainer.tables.boxes import PRESENCE, ROLLING_ROWS, Z_PRESENCE


class TableSettings(Section):
    """Of study_boxes; the other tables have none. Defaults are the reference's (its 3.3)."""

    model_config = ConfigDict(validate_default=True)
    """a default of 0 and a given 0 are spelled alike: the spelling is compared"""

    over_seeds: Literal["mean", "extreme"] = "mean"
    """mean: seeds averaged slice by slice, as the reference documents; extreme: min and max over them, as its code does"""
    presence: float = Field(PRESENCE, ge=0, lt=1)
    z_presence: float = Field(Z_PRESENCE, ge=0, lt=1)
    rolling_rows: int = Field(ROLLING_ROWS, ge=1, le=10_000)
    box_margin: float = Field(0, ge=0, le=10_000)
    """native pixels by which a study's box is widened on each side: for networks that see slices much smaller than they are"""

    def of(self, table: str) -> dict[str, str]:
        """What of this decides a table, by name."""
        return {name: str(value) for name, value in self if table == "study_boxes"}


def table_settings(given: Mapping[str, Any]) -> TableSettings:
    """From words. Raises UsageError for what does not fit."""
    for key in given:
        if key not in TableSettings.model_fields:
            raise UsageError(f"no setting tables.{key}", do=nearest(key, TableSettings.model_fields))
    try:
        return TableSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"tables.{first['loc'][0]}={first['input']!r} does not fit",
            expected=first["msg"].lower().removeprefix("input should be "),
        ) from None
