"""report.csv: everything there is to say about files and studies, one row each, sorted; made anew by every build."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import pandas as pd

from cache_schema.columns import REPORT_COLUMNS
from preprocess.findings import REASONS, Finding

BUILD_REASONS: dict[str, str] = {
    "failed": "the study ended in an error that no other reason covers",
    "worker_died": "a process died on the study, or hung and was ended, and again one that worked on nothing else",
    "study_box_lost": "the study was replaced because its source changed, and lost its study_box; run set-boxes again",
    "no_box": "left out of a cropped cache: the study has no box to be cut to",
    "labels_mismatch": "the CSVs of labels or folds and the source do not name the same studies",
    "not_in_source": "kept from an earlier build: the source has no study of this id any more",
}
"""What only a build or a crop can say, beside the reasons of `preprocess.findings`."""

ALL_REASONS = REASONS | BUILD_REASONS
PASSING_REASONS = frozenset(
    {
        *("failed", "worker_died", "source_changed", "study_box_lost"),
        *("unreadable_file", "unlisted_folder", "segmentation_unopened"),
    }
)
"""What may be gone next time though no file changed."""


@dataclass(frozen=True, order=True)
class Row:
    """One row: id of the study or "", number or path of the file or "", refused | repaired | flagged, reason, message."""

    id: str
    file: str
    severity: str
    reason: str
    message: str

    def __post_init__(self):
        if self.reason not in ALL_REASONS:
            raise ValueError(f"{self.reason!r} is not one of the closed list of reasons")

    @classmethod
    def of(cls, finding: Finding, *, paths: bool) -> "Row":
        file = finding.path if paths and finding.path else finding.file
        return cls(finding.id, file, finding.severity, finding.reason, finding.message)


def build_row(id: str, severity: str, reason: str, message: str | None = None) -> Row:
    """A row about a whole study with one of the build's own reasons; it says what the reason says, or more."""
    return Row(id, "", severity, reason, message or BUILD_REASONS[reason])


def report_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """The table, sorted, without repetitions; file numbers in the order of numbers. What is not UTF-8 in a path is escaped."""
    ordered = sorted(set(rows), key=lambda row: (row.id, _file_key(row.file), row))
    rows = [[cell.encode("utf-8", "backslashreplace").decode() for cell in astuple(row)] for row in ordered]
    return pd.DataFrame(rows, columns=list(REPORT_COLUMNS), dtype="str")


def _file_key(file: str) -> tuple[int, str]:
    return (int(file), "") if file.isdecimal() else (0 if not file else 1, file)
