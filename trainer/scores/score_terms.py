"""Per-study sums of which a stage's score and its baseline's score, on the same rows, are computed.

A parts function takes predictions, their truth, and the truth of the training folds, on which alone the baseline is fitted.
Predictions of studies without a truth are ignored. A missing prediction raises CacheError: leaving out failures would
improve the score.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import BOX, FRACTURES
from cache_schema.errors import CacheError
from trainer.metric import NONZERO_WEIGHT, study_weights, target_losses
from trainer.scores.baselines import best_constants, fit_curve, mean_box


@dataclass(frozen=True)
class Parts:
    """One row per study, one column per term. A term is sum / count over studies, a score the sum of terms.

    The first terms make up the stage's own score; the others are for the scores by target.
    """

    ids: np.ndarray
    value: np.ndarray
    """(studies, terms) sums over the study's rows"""
    baseline: np.ndarray
    count: np.ndarray

    def of(self, ids: Collection[str]) -> "Parts":
        kept = np.isin(self.ids, list(ids))
        return Parts(self.ids[kept], self.value[kept], self.baseline[kept], self.count[kept])


PREDICT = "predict all held-out studies, or move these predictions out of RUNS"
PartsOf = Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], Parts]


def bbox_parts(predictions: pd.DataFrame, truth: pd.DataFrame, training: pd.DataFrame) -> Parts:
    """Stage 1: IoU on triplets that have a box. Truth: id, z_index (middle slice), x0 y0 x1 y1 native, has_box."""
    rows = matched(predictions, truth[truth["has_box"] > 0.5], ["id", "z_index"])
    true = rows[[f"{name}_true" for name in BOX]].to_numpy(np.float64)
    constant = mean_box(training.loc[training["has_box"] > 0.5, BOX].to_numpy(np.float64))
    value = iou(rows[BOX].to_numpy(np.float64), true)
    return by_study(rows["id"], value[:, None], iou(constant[None], true)[:, None], np.ones((len(rows), 1)))


def vertebra_parts(predictions: pd.DataFrame, truth: pd.DataFrame, training: pd.DataFrame) -> Parts:
    """Stage 2: weighted squared error of the ratios, clipped to [0, 1] as in reference 7.3.

    Truth: id, z_index, C1..C7 of all slices of segmented studies, so that z_index / (slices - 1) is known.
    """
    seen = _relative(training)
    targets = training[list(LEVELS)].to_numpy(np.float64)
    curve = fit_curve(seen, targets, _weights(targets))
    rows = matched(predictions, truth.assign(relative=_relative(truth)), ["id", "z_index"])
    true = rows[[f"{name}_true" for name in LEVELS]].to_numpy(np.float64)
    value = rows[list(LEVELS)].to_numpy(np.float64).clip(0, 1)
    baseline = curve(rows["relative"].to_numpy(np.float64))
    return _squared_error(rows["id"], value, baseline, true, [slice(0, 7)])


def slice_fracture_parts(predictions: pd.DataFrame, truth: pd.DataFrame, training: pd.DataFrame) -> Parts:
    """Stage 3: its three weighted squared errors (ratios, fractures, any) at the predicted slices; then those of the fractures of
    C1..C7.

    Truth: the pseudo labels (id, z_index, C1..C7, C1_frac..C7_frac); unknown fractures are ignored.
    """
    names = [*LEVELS, *FRACTURES, "any_frac"]
    truth, training = _with_any(truth), _with_any(training)
    _all_studies(predictions, truth)
    rows = predictions.merge(truth, on=["id", "z_index"], suffixes=("", "_true"), validate="one_to_one")
    true = rows[[f"{name}_true" for name in names]].to_numpy(np.float64)
    targets = training[names].to_numpy(np.float64)
    baseline = best_constants(targets, _weights(targets))[None]
    terms = [slice(0, 7), slice(7, 14), slice(14, 15), *(slice(7 + level, 8 + level) for level in range(len(LEVELS)))]
    return _squared_error(rows["id"], rows[names].to_numpy(), baseline, true, terms)


def study_fracture_parts(predictions: pd.DataFrame, truth: pd.DataFrame, training: pd.DataFrame) -> Parts:
    """Stage 4: weighted log loss, one term per target. Truth: labels (id, patient_overall, C1..C7), null where unknown.

    The baseline's constants are clipped to [1 / (n + 2), 1 - 1 / (n + 2)], n: training studies with that label.
    """
    targets = _floats(training[list(TARGETS)])
    # without a fracture of a level in the training folds, the baseline's log loss could be infinite
    known = (~np.isnan(targets)).sum(0)
    constants = best_constants(targets, study_weights(targets)).clip(1 / (known + 2), 1 - 1 / (known + 2))
    labelled = truth[truth[list(TARGETS)].notna().any(axis=1)]
    rows = matched(predictions, labelled[["id", *TARGETS]], ["id"])
    true = _floats(rows[[f"{name}_true" for name in TARGETS]])
    value = target_losses(true, rows[list(TARGETS)].to_numpy(np.float64))
    baseline = target_losses(true, np.broadcast_to(constants, true.shape))
    return by_study(rows["id"], value, baseline, np.ones(true.shape))


def across_folds(parts_of: PartsOf, predictions: pd.DataFrame, truth: pd.DataFrame, folds: pd.Series) -> Parts:
    """Parts of all folds with predictions; each fold's baseline is from the truth of the others. folds: id -> fold."""
    fold, predicted = _fold_of(truth["id"], folds), _fold_of(predictions["id"], folds)
    known = ~np.isnan(fold)
    each = [
        parts_of(predictions[predicted == k], truth[fold == k], truth[known & (fold != k)])
        for k in sorted(set(predicted[~np.isnan(predicted)]) & set(fold[known]))
    ]
    if not each:
        do = "score runs with held-out studies of the cache"
        raise CacheError("no held-out study has both a prediction and a truth", do=do)
    joined = {name: np.concatenate([getattr(p, name) for p in each]) for name in ("ids", "value", "baseline", "count")}
    return Parts(**joined)


def _fold_of(ids: pd.Series, folds: pd.Series) -> np.ndarray:
    """(n,) float64, NaN without a fold. Each study is looked up once, not each of its slices."""
    codes, studies = pd.factorize(ids)
    return folds.reindex(studies).to_numpy(np.float64, na_value=np.nan)[codes]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) or (1, 4) and (n, 4) x0 y0 x1 y1 -> (n,) intersection over union; an inverted box has area 0."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = sides.clip(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clip(0).prod(1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _squared_error(
    ids: pd.Series, value: np.ndarray, baseline: np.ndarray, true: np.ndarray, terms: list[slice]
) -> Parts:
    weights = _weights(true)
    known = np.nan_to_num(true)
    errors = [weights * (guess - known) ** 2 for guess in (value, baseline)]
    sums = [np.stack([each[:, term].sum(1) for term in terms], axis=1) for each in (*errors, ~np.isnan(true))]
    return by_study(ids, *sums)


def _weights(targets: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(targets), 0.0, np.where(targets != 0, NONZERO_WEIGHT, 1.0))


def by_study(ids: pd.Series, value: np.ndarray, baseline: np.ndarray, count: np.ndarray) -> Parts:
    names, place = np.unique(ids.to_numpy(str), return_inverse=True)
    sums = []
    for rows in (value, baseline, count):
        total = np.zeros((len(names), rows.shape[1]))
        np.add.at(total, place, rows)
        sums.append(total)
    return Parts(names, *sums)


def matched(predictions: pd.DataFrame, truth: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Rows of the truth with their predictions; columns of both end in _true for the truth."""
    rows = predictions.merge(truth, on=keys, how="right", suffixes=("", "_true"), validate="one_to_one", indicator=True)
    absent = rows.loc[rows["_merge"] != "both", "id"]
    if len(absent):
        raise CacheError(f"{len(absent)} held-out rows are not predicted", where=absent.iloc[0], do=PREDICT)
    return rows


def _all_studies(predictions: pd.DataFrame, truth: pd.DataFrame) -> None:
    absent = sorted(set(truth["id"]) - set(predictions["id"]))
    if absent:
        raise CacheError(f"{len(absent)} held-out studies are not predicted", where=absent[0], do=PREDICT)


def _relative(rows: pd.DataFrame) -> np.ndarray:
    last = rows.groupby("id")["z_index"].transform("max")
    return (rows["z_index"] / last.clip(lower=1)).to_numpy(np.float64)


def _with_any(pseudo: pd.DataFrame) -> pd.DataFrame:
    return pseudo.assign(any_frac=pseudo[list(FRACTURES)].max(axis=1, skipna=False))


def _floats(labels: pd.DataFrame) -> np.ndarray:
    return labels.astype("Float64").to_numpy(np.float64, na_value=np.nan)
