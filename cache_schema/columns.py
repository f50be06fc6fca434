"""Records and labels as data frames of fixed columns and dtypes, whatever the studies; an empty set included."""

import math
from typing import Any

import pandas as pd

from cache_schema.layout import BOX_BOUNDS, LEVELS, TARGETS
from cache_schema.study import StudyRecord

STUDY_BOX = (*BOX_BOUNDS, "z_from", "z_to")
BOX = list(BOX_BOUNDS)
FULL_FRAME = "full_frame"
"""source of a row of study_boxes whose study has no box: the whole frame, and all slices"""
FRACTURES = tuple(f"{level}_frac" for level in LEVELS)
DECIMALS = 3
"""of ratios in pseudo labels: losses take `not exactly 0` as positive, so rounding decides which slices are (reference 3.5)"""
LABEL_COLUMNS = ("id", *TARGETS, "fold")
REPORT_COLUMNS = ("id", "file", "severity", "reason", "message")

INDEX_COLUMNS = {
    **dict.fromkeys(("id", "study_uid", "series_uid"), "str"),
    **dict.fromkeys(("rows", "columns", "slices"), "int32"),
    **dict.fromkeys(
        ("spacing_z", "spacing_y", "spacing_x", "slice_spacing_min", "slice_spacing_median", "slice_spacing_max"),
        "float64",
    ),
    **dict.fromkeys(("transfer_syntax", "decoder", "flags"), "str"),
    **dict.fromkeys(STUDY_BOX, "Int32"),
    "box_made_by": "str",
    **dict.fromkeys(("pixels", "bytes"), "int64"),
    **dict.fromkeys(("content_digest", "segmentation_digest", "source_digest", "digest"), "str"),
}
"""column -> dtype of index.parquet; NaN spacings are open, flags joined by spaces, pixels are those stored (a cropped study
holds fewer than slices x rows x columns), bytes without zarr.json"""


def index_row(record: StudyRecord, attributes: dict[str, Any]) -> dict[str, Any]:
    """One study's row of the index. attributes: those of its zarr.json."""
    between, box = record.slice_spacing, record.study_box
    return {
        **{name: getattr(record, name) for name in ("id", "study_uid", "series_uid", "rows", "columns", "slices")},
        "spacing_z": record.spacing[0] if record.spacing else None,
        "spacing_y": record.pixel_spacing[0],
        "spacing_x": record.pixel_spacing[1],
        **{f"slice_spacing_{name}": getattr(between, name) if between else None for name in ("min", "median", "max")},
        **{name: getattr(record, name) for name in ("transfer_syntax", "decoder", "source_digest")},
        "flags": " ".join(record.flags),
        **{name: getattr(box, name) if box else None for name in STUDY_BOX},
        "box_made_by": box.made_by if box else None,
        "pixels": math.prod(record.shape),
        "bytes": sum(file["bytes"] for file in attributes["files"].values()),
        "content_digest": record.content_digest,
        "segmentation_digest": record.segmentation_digest,
        "digest": attributes["digest"],
    }


def index_frame(rows: list[dict]) -> pd.DataFrame:
    """index.parquet, sorted by id."""
    frame = pd.DataFrame(rows, columns=list(INDEX_COLUMNS)).astype(INDEX_COLUMNS)
    return frame.sort_values("id", ignore_index=True)


def labels_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """labels.parquet, sorted by id: 0, 1 or null for each target, fold or null.

    Raises ValueError for other values and repeated ids.
    """
    frame = frame[list(LABEL_COLUMNS)].astype({"id": "str"} | dict.fromkeys(TARGETS, "Int8") | {"fold": "Int8"})
    if frame["id"].duplicated().any():
        raise ValueError(f"{frame['id'][frame['id'].duplicated()].iloc[0]} is there twice")
    for target in TARGETS:
        if not frame[target].dropna().isin((0, 1)).all():
            raise ValueError(f"{target} holds something else than 0, 1 or nothing")
    return frame.sort_values("id", ignore_index=True)
