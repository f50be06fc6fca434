"""vertebra_ratios x the study's own labels -> pseudo_labels (reference 3.5)."""

import numpy as np
import pandas as pd

from cache_schema import LEVELS
from cache_schema.columns import DECIMALS, FRACTURES


def pseudo_labels(ratios: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """id, z_index, C1..C7 (rounded to 3 decimals), C1_frac..C7_frac, float32, in the ratios' order.

    Ci_frac = rounded Ci x the study's label Ci; null if that label is unknown or the study has no labels.
    labels: id, C1..C7 (0, 1 or null).
    """
    by_study = labels.set_index("id")[list(LEVELS)].astype("Float64").reindex(ratios["id"])
    label = by_study.to_numpy(np.float64, na_value=np.nan)
    rounded = ratios[list(LEVELS)].to_numpy(np.float64).round(DECIMALS)
    table = ratios[["id", "z_index"]].reset_index(drop=True)
    table[list(LEVELS)] = rounded.astype(np.float32)
    table[list(FRACTURES)] = (rounded * label).astype(np.float32)
    return table
