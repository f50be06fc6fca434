"""report.csv: one row for each finding of a build, sorted; every build writes it anew."""

from collections.abc import Iterable

import pandas as pd

from cache_schema.columns import REPORT_COLUMNS
from preprocess.findings import Finding


def report_frame(findings: Iterable[Finding], *, paths: bool = False) -> pd.DataFrame:
    """The table, sorted, without repeated rows. paths: name files by their paths, not their numbers.

    What is not UTF-8 in a path is escaped.
    """
    rows = {
        (found.id, found.path if paths and found.path else found.file, found.severity, found.reason, found.message)
        for found in findings
    }
    ordered = sorted(rows, key=lambda row: (row[0], _file_key(row[1]), row))
    cells = [[cell.encode("utf-8", "backslashreplace").decode() for cell in row] for row in ordered]
    return pd.DataFrame(cells, columns=list(REPORT_COLUMNS), dtype="str")


def _file_key(file: str) -> tuple[int, str]:
    """Numbers in their own order, then paths."""
    return (int(file), "") if file.isdecimal() else (0 if not file else 1, file)
