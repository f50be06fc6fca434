"""Range checks for columns of tables that other programs may have written."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd


def misfit(
    table: pd.DataFrame,
    names: Iterable[str],
    least: float = -math.inf,
    most: float = math.inf,
    *,
    whole: bool = False,
    unknown: bool = False,
) -> str:
    """`<column> holds <value>` of the first that is no finite number from `least` to `most`; "" where all are.

    whole: without fractions. unknown: null is one of the values.
    """
    for name in names:
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        fits = np.isfinite(values) & (values >= least) & (values <= most)
        if whole:
            fits &= values == np.floor(values)
        if unknown:
            fits |= table[name].isna().to_numpy()
        if not fits.all():
            return f"{name} holds {table[name][~fits].iloc[0]!s:.40}"
    return ""
