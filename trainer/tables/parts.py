"""The predictions of many runs part by part: as a rule a fold, whose runs of all seeds and variants predict the same studies."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from cache_schema.tables import read_table
from trainer.runs.file_names import PREDICTIONS


def predicted_ids(run_dir: Path) -> frozenset[str]:
    """The studies of a run's held-out predictions."""
    return frozenset(read_table(run_dir / PREDICTIONS, ["id"])["id"].unique())


def parts(run_dirs: Iterable[Path]) -> list[tuple[Path, ...]]:
    """The runs in parts of which no two predict the same study, each in the given order."""
    found: list[tuple[list[Path], set[str]]] = []
    order = list(run_dirs)
    for run_dir in order:
        runs, ids = [run_dir], set(predicted_ids(run_dir))
        for part in [part for part in found if not part[1].isdisjoint(ids)]:
            found.remove(part)
            runs, ids = [*part[0], *runs], part[1] | ids
        found.append((runs, ids))
    return [tuple(sorted(runs, key=order.index)) for runs, _ in found]


def made_by_part(
    run_dirs: Iterable[Path], make: Callable[[list[pd.DataFrame]], pd.DataFrame], keys: list[str]
) -> pd.DataFrame:
    """One table of all runs, sorted by its keys, from tables that `make` makes from the predictions of each part.

    The same as of all at once: each study's rows come from its own predictions, in the order of their runs.
    """
    each = parts(run_dirs)
    if len(each) < 2:
        return make([read_table(run_dir / PREDICTIONS) for part in each for run_dir in part])
    tables = [make([read_table(run_dir / PREDICTIONS) for run_dir in part]) for part in each]
    # a table without rows does not know the kinds of its columns
    table = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return table.sort_values(keys, kind="stable", ignore_index=True)
