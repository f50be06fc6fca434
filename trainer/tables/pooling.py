"""Predictions of several runs -> one frame. Runs of different folds predict different studies, runs of different seeds the same."""

import pandas as pd

from cache_schema.errors import CacheError


def pooled(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all runs, with `run`, the index of the run. Raises CacheError for an empty list."""
    if not predictions:
        raise CacheError("no predictions to make a table from", do="run the stage first")
    return pd.concat([frame.assign(run=run) for run, frame in enumerate(predictions)], ignore_index=True)


def mean_over_runs(predictions: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """keys, the mean of each other column over the runs with that row, and their number `runs`. Sorted by keys."""
    grouped = pooled(predictions).groupby(keys, sort=True)
    table = grouped.mean().drop(columns="run")
    table["runs"] = grouped["run"].nunique()
    return table.reset_index()
