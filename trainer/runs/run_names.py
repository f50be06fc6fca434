"""A run's name, which is its path below RUNS: `<stage>-<variant>/fold<k>-seed<s>`. Without torch."""

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
        """From a run's folder or name; parts of other names are empty."""
        kind, _, rest = run_name(Path(run)).partition("/")
        fold, _, seed = rest.removeprefix("fold").partition("-seed")
        return cls(*split_kind(kind), fold, seed)


def run_name(run_dir: Path) -> str:
    """The name of the run in this folder."""
    return f"{run_dir.parent.name}/{run_dir.name}"


def split_kind(kind: str) -> tuple[str, str]:
    """`<stage>-<variant>` -> (stage, variant); the name of a table -> ("", name)."""
    stage, _, variant = kind.rpartition("-")
    return stage, variant
