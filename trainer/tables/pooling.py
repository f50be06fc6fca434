"""Several runs' predictions -> one frame. Runs of other folds hold other studies, runs of other seeds the same."""

import pandas as pd

from cache_schema.errors import CacheError


def pooled(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows of all runs, with `run`, the run's place in the list. Raises CacheError where there is no run at all."""
    if not predictions:
        raise CacheError("no predictions to make a table from", do="run the stage first")
    return pd.concat([frame.assign(run=run) for run, frame in enumerate(predictions)], ignore_index=True)


def mean_over_runs(predictions: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """keys, the mean of every other column over the runs that have the row, runs (how many). Sorted by keys."""
    grouped = pooled(predictions).groupby(keys, sort=True)
    table = grouped.mean().drop(columns="run")
    table["runs"] = grouped["run"].nunique()
    return table.reset_index()
