"""The tables in the reference's CSV formats (reference 1.2, 3.2 to 3.5), for comparison with its artefacts.

Slices are identified by slice_number, ascending, studies by StudyInstanceUID. Pure functions on data frames, except `write`.
"""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.columns import BOX, DECIMALS, FRACTURES, FULL_FRAME
from cache_schema.documents import write_whole
from cache_schema.errors import UsageError
from cache_schema.tables import read_table
from trainer.data.items import triplets
from trainer.runs.inputs import labels_of

FORMATS = ("rsna22",)
FRAME = 512
"""side in pixels of the frame of predicted boxes in the reference, for all studies (3.3)"""
CLASSES = ["BG", *(f"T{number}" for number in range(1, 13))]
UNSEGMENTED = -1
"""value of all class columns of a study without segmentation (reference 3.4)"""
ID = "StudyInstanceUID"
OF_THIS_CACHE = "make it from runs of this cache, or move it out of RUNS"


def slice_boxes(slices: pd.DataFrame, folds: pd.Series) -> pd.DataFrame:
    """train_bbox_v01: StudyInstanceUID, slice_number, x0 y0 x1 y1 (inclusive ends, native pixels), has_box, height, width, fold.

    slices: id, slice_number, x0 y0 x1 y1 (exclusive ends, -1 where empty), rows, columns, of segmented studies. The box of
    an empty slice is the frame's centre. `height` is x1 - x0 and `width` is y1 - y0, swapped as in the reference (3.2), and
    0 on an empty slice.
    """
    table = _named(slices, folds)
    there = table["x1"] > table["x0"]
    for low, high, side in (("x0", "x1", "columns"), ("y0", "y1", "rows")):
        table[high] = np.where(there, table[high] - 1, table[side] // 2)
        table[low] = np.where(there, table[low], table[side] // 2)
    table = table.assign(has_box=there.astype(int), height=table["x1"] - table["x0"], width=table["y1"] - table["y0"])
    return table[[ID, "slice_number", *BOX, "has_box", "height", "width", "fold"]]


def study_boxes(boxes: pd.DataFrame, slices: pd.DataFrame) -> pd.DataFrame:
    """train_bbox_pred_v02: StudyInstanceUID, x0 y0 x1 y1 in the frame of 512, slnum_from, slnum_to, slnum_max.

    Studies without a box have no row. slnum_from, slnum_to: slice numbers of the kept range; slnum_max: the largest slice
    number of a middle slice.
    boxes: study_boxes. slices: id, z_index, slice_number, rows, columns.
    """
    rows = []
    by_study = dict(iter(slices.sort_values("z_index").groupby("id")))
    for box in boxes[boxes["source"] != FULL_FRAME].sort_values("id").itertuples():
        if box.id not in by_study:
            raise UsageError(f"study_boxes holds {box.id}, and the cache does not", do=OF_THIS_CACHE)
        study = by_study[box.id]
        numbers = study["slice_number"].to_numpy()
        if box.z_to > len(numbers):
            raise UsageError(f"study_boxes reaches beyond the {len(numbers)} slices of {box.id}", do=OF_THIS_CACHE)
        width, height = study["columns"].iloc[0], study["rows"].iloc[0]
        low = (int(np.floor(box.x0 * FRAME / width)), int(np.floor(box.y0 * FRAME / height)))
        high = (int(np.ceil(box.x1 * FRAME / width)), int(np.ceil(box.y1 * FRAME / height)))
        ends = sorted((numbers[box.z_from], numbers[box.z_to - 1]))
        middles = [item.middle for item in triplets([(box.id, len(numbers))], every=3)]
        rows.append((box.id, *low, *high, *map(int, ends), int(numbers[middles].max())))
    return pd.DataFrame(rows, columns=[ID, *BOX, "slnum_from", "slnum_to", "slnum_max"])


def image_level(slices: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """train_image_level_v03: StudyInstanceUID, patient_overall, C1..C7 (ratios), fold, slice_number, xpos, ypos, zpos, BG, T1..T12.

    slices: id, slice_number, z (mm along the slice normal, equal to zpos if the slices are not tilted), C1..C7, NaN without
    segmentation, where all class columns are -1. xpos, ypos and the other classes of segmented studies are empty: the cache
    does not hold them.
    """
    known = labels.set_index("id")
    table = _named(slices, known["fold"])
    segmented = table[list(LEVELS)].notna().all(axis=1)
    table[list(LEVELS)] = table[list(LEVELS)].astype("Float64").where(segmented, UNSEGMENTED)
    table["patient_overall"] = known["patient_overall"].reindex(table[ID]).array
    table = table.assign(xpos=pd.NA, ypos=pd.NA, zpos=table["z"])
    unknown = pd.Series(np.where(segmented, np.nan, UNSEGMENTED)).astype("Int64")
    table = table.assign(**dict.fromkeys(CLASSES, unknown))
    columns = [ID, "patient_overall", *LEVELS, "fold", "slice_number", "xpos", "ypos", "zpos", *CLASSES]
    return table.sort_values([ID, "fold", "slice_number"], ignore_index=True)[columns]


def pseudo_labels(pseudo: pd.DataFrame, slices: pd.DataFrame, folds: pd.Series) -> pd.DataFrame:
    """train_image_pseu_v04_crop: StudyInstanceUID, slice_number, C1_pred..C7_pred, fold, C1_frac..C7_frac, to 3 decimals."""
    numbered = pseudo.merge(slices[["id", "z_index", "slice_number"]], on=["id", "z_index"], validate="one_to_one")
    if len(numbered) < len(pseudo):
        what = f"pseudo_labels holds {len(pseudo) - len(numbered)} slices that the cache does not"
        raise UsageError(what, do=OF_THIS_CACHE)
    table = _named(numbered, folds).rename(columns={level: f"{level}_pred" for level in LEVELS})
    values = [*(f"{level}_pred" for level in LEVELS), *FRACTURES]
    table[values] = table[values].astype("float64").round(DECIMALS)
    return table[[ID, "slice_number", *values[: len(LEVELS)], "fold", *FRACTURES]]


def write(tables: Path, cache: Cache) -> list[Path]:
    """Writes all that the cache and RUNS/tables allow into RUNS/tables/rsna22. Returns the files."""
    labels, slices = labels_of(cache), _slices(cache)
    folds = labels.set_index("id")["fold"]
    segmented = slices[slices["x0"].notna()].astype({name: "int64" for name in BOX})
    found = {
        "train_folded_v01.csv": labels[["id", *TARGETS, "fold"]].rename(columns={"id": ID}).sort_values(ID),
        "train_all_slices_v01.csv.gz": _named(slices, folds)[[ID, "slice_number", "fold"]],
        "train_bbox_v01.csv.gz": slice_boxes(segmented, folds),
        "train_image_level_v03.csv.gz": image_level(slices, labels),
    }
    if (path := tables / "study_boxes.parquet").is_file():
        found["train_bbox_pred_v02.csv.gz"] = study_boxes(read_table(path), slices)
    if (path := tables / "pseudo_labels.parquet").is_file():
        found["train_image_pseu_v04_crop.csv.gz"] = pseudo_labels(read_table(path), slices, folds)
    folder = tables / "rsna22"
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in found.items():
        text = table.to_csv(index=False).encode()
        # without mtime, the gzip header would hold the current time
        write_whole(folder / name, gzip.compress(text, mtime=0) if name.endswith(".gz") else text)
    return [folder / name for name in found]


def _slices(cache: Cache) -> pd.DataFrame:
    """One row per slice: id, z_index, slice_number, z, rows, columns, x0 y0 x1 y1 and C1..C7 (NaN without segmentation)."""
    parts = []
    for id in cache.ids:
        study = cache.study(id)
        part = pd.DataFrame({"id": id, "z_index": np.arange(study.record.slices), "z": study.z})
        part = part.assign(slice_number=study.slice_number, rows=study.record.rows, columns=study.record.columns)
        part[BOX] = np.nan if study.slice_box is None else study.slice_box.astype(np.float64)
        part[list(LEVELS)] = np.nan if study.vertebra_ratio is None else study.vertebra_ratio.astype(np.float64)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _named(slices: pd.DataFrame, folds: pd.Series) -> pd.DataFrame:
    """The slices with StudyInstanceUID and fold, sorted by study and slice."""
    table = slices.rename(columns={"id": ID}).sort_values([ID, "slice_number"], ignore_index=True)
    return table.assign(fold=folds.reindex(table[ID]).array)
