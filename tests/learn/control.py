"""The label-permutation control: the same studies and folds, with labels that say nothing about them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema import TARGETS

PERMUTED = "permuted"


def permuted(labels: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Whole rows of labels shuffled among the studies of each fold: prevalences stay, what they say of a study goes.

    labels: id, patient_overall, C1..C7, fold.
    """
    rng, shuffled = np.random.default_rng(seed), labels.copy()
    for _, rows in labels.groupby("fold"):
        shuffled.loc[rows.index, list(TARGETS)] = rows[list(TARGETS)].to_numpy()[rng.permutation(len(rows))]
    return shuffled[["id", *TARGETS]]


def hardlinks(source: Path, target: Path) -> None:
    """A copy that takes no room. Files of caches and runs are replaced, never written into, so that the source stays."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("tracker", "metrics.jsonl"))
