"""The truth of predictions from segmented studies: boxes of triplets and vertebra ratios of slices."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cache_schema import LEVELS, Study
from cache_schema.columns import BOX
from cache_schema.errors import CacheError
from trainer.data.items import triplets


def union_box(slice_boxes: np.ndarray) -> np.ndarray | None:
    """(n, 4) boxes of slices, -1 where empty -> (4,) their union; None if all are empty (reference Q10)."""
    there = slice_boxes[slice_boxes[:, 2] > slice_boxes[:, 0]]
    return np.concatenate([there[:, :2].min(0), there[:, 2:].max(0)]) if len(there) else None


def box_truth(studies: Iterable[Study]) -> pd.DataFrame:
    """id, z_index (middle slice), x0 y0 x1 y1 in native pixels (NaN without a box), has_box, of the triplets that are predicted."""
    rows = []
    for study in studies:
        boxes = _required(study, study.slice_box)
        for item in triplets([(study.id, study.record.slices)], every=3):
            index = item.z_index()
            box = union_box(boxes[index[index >= 0]])
            rows.append((item.id, item.middle, *(box if box is not None else [np.nan] * 4), float(box is not None)))
    return pd.DataFrame(rows, columns=["id", "z_index", *BOX, "has_box"])


def ratio_truth(studies: Iterable[Study]) -> pd.DataFrame:
    """id, z_index, C1..C7 of every slice."""
    parts = []
    for study in studies:
        part = pd.DataFrame(_required(study, study.vertebra_ratio).astype(np.float64), columns=list(LEVELS))
        part.insert(0, "z_index", np.arange(len(part)))
        part.insert(0, "id", study.id)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["id", "z_index", *LEVELS])


def _required(study: Study, values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise CacheError("has no segmentation", where=study.id)
    return values
