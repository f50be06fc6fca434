"""What tests of tables look at: the runs of the tiny chain, its tables, and what is said of stale runs."""

import json
from pathlib import Path

NAMES = [
    f"{kind}/fold{fold}-seed1"
    for kind in ("bbox-01B", "vertebrae-04A", "slice_fracture-04F", "study_fracture-04F")
    for fold in (0, 1)
]


def tables_of(runs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (runs / "tables").iterdir() if path.is_file()}


def stale(said: str) -> dict[str, str]:
    """Run -> why, of the lines that name stale runs."""
    lines = [line.split(": stale, left out: ") for line in said.splitlines() if ": stale, left out: " in line]
    return dict(lines)


def scored(runs: Path) -> set[str]:
    return {row["stage"] for row in json.loads((runs / "tables/scores.json").read_text())}


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)
