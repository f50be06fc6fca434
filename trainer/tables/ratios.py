"""Predictions of stage 2 -> vertebra_ratios (reference 3.5)."""

import pandas as pd

from cache_schema import LEVELS
from trainer.tables.pooling import pooled


def vertebra_ratios(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    """id, z_index, C1..C7: the mean over all windows of all runs, with equal weights, clipped to [0, 1]. Sorted.

    predictions: one frame per run: id, z_index, windows (the number of windows averaged in C1..C7), C1..C7.
    """
    every = pooled(predictions)
    weighted = every[list(LEVELS)].mul(every["windows"], axis=0)
    keys = [every["id"], every["z_index"]]
    sums, windows = weighted.groupby(keys, sort=True).sum(), every["windows"].groupby(keys, sort=True).sum()
    return sums.div(windows, axis=0).clip(0, 1).reset_index()
