"""The name of a run, which is where it lies below RUNS: `<stage>-<variant>/fold<k>-seed<s>`. No torch."""

from pathlib import Path
from typing import NamedTuple


class RunName(NamedTuple):
    stage: str
    variant: str
    fold: str
    """a number, or `all`"""
    seed: str

    @classmethod
    def of(cls, run: Path | str) -> "RunName":
        """Of a run's folder, or of what `run_name` says. Of a name that is no run's, parts are empty."""
        kind, _, rest = run_name(Path(run)).partition("/")
        fold, _, seed = rest.removeprefix("fold").partition("-seed")
        return cls(*split_kind(kind), fold, seed)


def run_name(run_dir: Path) -> str:
    """Whatever folder RUNS is."""
    return f"{run_dir.parent.name}/{run_dir.name}"


def split_kind(kind: str) -> tuple[str, str]:
    """`<stage>-<variant>` -> (stage, variant). Of the name of a table: ("", it)."""
    stage, _, variant = kind.rpartition("-")
    return stage, variant
