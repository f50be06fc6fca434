"""What one run of the throughput table found: every repeat, and what it was measured on. A JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from benchmarks.rounds import Cost, Ratio
from cache_schema.errors import UsageError, reason_of

OURS = "cspine"


class Row(NamedTuple):
    """One thing that is measured of each way."""

    title: str
    by: str
    """cpu_ms or wall_ms"""


ROWS = {
    "window": Row("window", "cpu_ms"),
    "window_2": Row("window, 2 workers", "wall_ms"),
    "triplet": Row("triplet", "cpu_ms"),
    "triplet_2": Row("triplet, 2 workers", "wall_ms"),
    "prepare": Row("preparing", "cpu_ms"),
    "first": Row("first batch", "wall_ms"),
}
BYTES = "bytes"


class Way(BaseModel):
    """One way from DICOM to images: what it is, and what it found."""

    model_config = ConfigDict(extra="forbid")
    versions: dict[str, str] = {}
    note: str = ""
    """what it does otherwise"""
    missing: dict[str, str] = {}
    """row -> why it has none"""
    costs: dict[str, list[Cost]] = {}
    """row -> its cost in every round, per unit"""
    bytes: float | None = None
    """on disk, per slice"""
    difference: tuple[float, float] | None = None
    """mean and largest absolute difference of its windows from cspine's, in steps of the 8-bit pixels"""


class Run(BaseModel):
    """One run of the benchmark."""

    model_config = ConfigDict(extra="forbid")
    date: str
    commit: str
    machine: dict[str, str]
    settings: dict[str, Any]
    load: list[float]
    """of the system, after each round"""
    seconds: float = 0
    """that all of it took"""
    ways: dict[str, Way]
    exam: dict[str, Any] = {}

    def factor(self, row: str, way: str) -> Ratio | None:
        """The way's cost over cspine's, paired by round; None where one of them has no such row."""
        theirs, ours = (self.ways[name].costs.get(row) for name in (way, OURS))
        if not theirs or not ours:
            return None
        by = ROWS[row].by
        return Ratio.of(way, *([getattr(cost, by) for cost in costs] for costs in (theirs, ours)))

    def rate(self, row: str, way: str) -> float | None:
        """Units a second (of CPU time, or of wall time): the median."""
        costs = self.ways[way].costs.get(row)
        return 1e3 / median(getattr(cost, ROWS[row].by) for cost in costs) if costs else None

    def others(self) -> Sequence[str]:
        return [name for name in self.ways if name != OURS]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n")


def load_run(path: Path) -> Run:
    """Raises UsageError where the file is none of a run."""
    expected, do = "a file that make bench wrote", "name one of benchmarks/results/bench-*.json"
    try:
        return Run.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(reason_of(error), where=path, expected=expected, do=do) from error
    except ValueError as error:
        raise UsageError("is not a run of the benchmark", where=path, expected=expected, do=do) from error
