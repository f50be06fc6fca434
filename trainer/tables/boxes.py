"""Predictions of stage 1 -> study_boxes: one box and one z-range a study (reference 3.3, its Q13 and Q14)."""

from typing import Any, Literal

import numpy as np
import pandas as pd

from cache_schema.columns import BOX, FULL_FRAME, STUDY_BOX
from cache_schema.errors import CacheError
from trainer.tables.pooling import pooled

PRESENCE = 0.5
"""rows with has_box at or below this probability are not used for the box"""
ROLLING_ROWS, ROLLING_MINIMUM = 5, 3
Z_PRESENCE = 0.1
"""the z-range spans the rows whose rolling mean of has_box exceeds this"""
COLUMNS = ["id", *STUDY_BOX, "source", "runs"]
OUTLIER_DEVIATIONS = 4.0
OUTLIER_SPREAD = 0.05
"""lower limit of the standard deviation of the logarithms: smaller spreads make no outliers"""


def study_boxes(
    predictions: list[pd.DataFrame],
    studies: pd.DataFrame,
    over_seeds: Literal["mean", "extreme"] = "mean",
    presence: float = PRESENCE,
    z_presence: float = Z_PRESENCE,
    rolling_rows: int = ROLLING_ROWS,
    box_margin: float = 0,
) -> pd.DataFrame:
    """The `study_boxes` table, one row for each of `studies`, sorted by id.

    predictions: one frame a run (id, z_index, x0, y0, x1, y1 in native pixels, has_box); runs of a study are averaged.
    studies: id, rows, columns, slices.
    over_seeds: `mean` averages the runs' boxes slice by slice, then takes the hull of the slices above `presence`;
    `extreme` takes the hull of every run's rows above it, as the reference does. The z-range is of the mean in both.
    x0 y0 x1 y1: whole native pixels, exclusive ends, `box_margin` pixels beyond the hull but inside the frame.
    z_from, z_to: z_index of the kept middle slices, exclusive end.
    A study without a row above `presence` gets the full frame and all its slices, with source `full_frame`.
    Raises CacheError if a study has no prediction.
    """
    every = pooled(predictions)
    per_slice = every.groupby(["id", "z_index"], sort=True)[[*BOX, "has_box"]].mean().reset_index()
    shaping = per_slice if over_seeds == "mean" else every
    runs = every.groupby("id")["run"].nunique()
    missing = sorted(set(studies["id"]) - set(runs.index))
    if missing:
        what = f"{len(missing)} studies have no bbox prediction, first {missing[0]}"
        raise CacheError(what, do="run stage=bbox on them")
    hulls = _hulls(shaping[shaping["has_box"] > presence])
    slices = dict(iter(per_slice.groupby("id")))
    rows = []
    for study in studies.sort_values("id").itertuples():
        box = _native(hulls.get(study.id), box_margin, study.rows, study.columns)
        if box is None:
            rows.append((study.id, 0, 0, study.columns, study.rows, 0, study.slices, FULL_FRAME, runs[study.id]))
        else:
            kept = z_range(slices[study.id], z_presence, rolling_rows)
            rows.append((study.id, *box, *kept, "model", runs[study.id]))
    return pd.DataFrame(rows, columns=COLUMNS)


def z_range(
    per_slice: pd.DataFrame, z_presence: float = Z_PRESENCE, rolling_rows: int = ROLLING_ROWS
) -> tuple[int, int]:
    """One study's rows (z_index of the middle slices, has_box) -> (z_from, z_to) of those kept, the end exclusive.

    From the first to the last row whose centred rolling mean of has_box over `rolling_rows` rows (at least 3 of them)
    exceeds `z_presence`; all rows if none does.
    """
    ordered = per_slice.sort_values("z_index")
    least = min(rolling_rows, ROLLING_MINIMUM)
    smooth = ordered["has_box"].rolling(rolling_rows, min_periods=least, center=True).mean()
    kept = ordered["z_index"][smooth > z_presence]
    if kept.empty:
        kept = ordered["z_index"]
    return int(kept.iloc[0]), int(kept.iloc[-1]) + 1


def segmentation_box(id: str, slice_box: np.ndarray, rows: int, columns: int) -> dict[str, Any]:
    """One study's row of `study_boxes` from its segmentation. slice_box: (slices, 4), -1 where empty."""
    there = np.flatnonzero(slice_box[:, 2] > slice_box[:, 0])
    if not len(there):
        values = (id, 0, 0, columns, rows, 0, len(slice_box), FULL_FRAME, 0)
    else:
        boxes = slice_box[there]
        low, high = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
        values = (id, *low, *high, int(there[0]), int(there[-1]) + 1, "segmentation", 0)
    return dict(zip(COLUMNS, values, strict=True))


def outliers(boxes: pd.DataFrame) -> pd.DataFrame:
    """Outlying boxes of models: id, quantity (area in px, aspect = width / height), value, median, deviations.

    deviations: of the logarithm from its median, in robust standard deviations (1.4826 x median absolute deviation), above 4.
    """
    own = boxes[boxes["source"] == "model"]
    width, height = own["x1"] - own["x0"], own["y1"] - own["y0"]
    found = []
    for quantity, values in (("area", width * height), ("aspect", width / height)):
        log = np.log(values.to_numpy(np.float64))
        distance = np.abs(log - np.median(log)) if len(log) else log
        spread = max(OUTLIER_SPREAD, 1.4826 * float(np.median(distance))) if len(log) else OUTLIER_SPREAD
        far = distance > OUTLIER_DEVIATIONS * spread
        for id, value, deviations in zip(own["id"][far], values[far], distance[far] / spread, strict=True):
            found.append((id, quantity, float(value), float(values.median()), float(deviations)))
    return pd.DataFrame(found, columns=["id", "quantity", "value", "median", "deviations"])


def report(boxes: pd.DataFrame) -> str:
    """Lines on studies without a box, which keep the full frame, and on outliers; "" if there are none."""
    whole = sorted(boxes.loc[boxes["source"] == FULL_FRAME, "id"])
    lines = (
        [f"study_boxes: {len(whole)} of {len(boxes)} studies keep the full frame, first {whole[0]}"] if whole else []
    )
    for far in outliers(boxes).itertuples():
        beside = f"the median {far.median:.4g}, {far.deviations:.1f} deviations off"
        lines.append(f"study_boxes: the box of {far.id} has {far.quantity} {far.value:.4g} beside {beside}")
    return "\n".join(lines)


def _hulls(rows: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    hulls = rows.groupby("id").agg({"x0": "min", "y0": "min", "x1": "max", "y1": "max"})
    return {row.Index: tuple(row[1:]) for row in hulls.itertuples()}


def _native(hull: tuple[float, ...] | None, margin: float, rows: int, columns: int) -> tuple[int, int, int, int] | None:
    """Rounded outward, clipped to the frame and widened by the margin; None if it is empty."""
    if hull is None:
        return None
    frame = np.array([columns, rows] * 2)
    low, high = np.floor(hull[:2]).clip(0, frame[:2]), np.ceil(hull[2:]).clip(0, frame[:2])
    if not (high > low).all():
        return None
    box = np.concatenate([np.floor(low - margin), np.ceil(high + margin)]).clip(0, frame)
    x0, y0, x1, y1 = (int(side) for side in box)
    return x0, y0, x1, y1
