"""Our tables in the reference's own CSV formats, on cases small enough to work out by hand (reference 3)."""

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.columns import BOX, FRACTURES
from cache_schema.tables import write_table
from trainer.tables import export
from trainer.tables.boxes import COLUMNS

FOLDS = pd.Series({"a": 1, "b": 0})


def slices(id: str, n: int, head_first: bool, rows: int = 512, columns: int = 512) -> pd.DataFrame:
    """From head to feet; the files of a study scanned from the feet are numbered the other way."""
    numbers = np.arange(1, n + 1) if head_first else np.arange(n, 0, -1)
    frame = pd.DataFrame({"id": id, "z_index": np.arange(n), "z": -2.5 * np.arange(n), "slice_number": numbers})
    return frame.assign(rows=rows, columns=columns)


def test_study_boxes_name_the_kept_middle_slices_by_number_in_the_frame_of_512():
    boxes = pd.DataFrame(
        [
            ("b", 100, 50, 201, 151, 4, 14, "model", 3),
            ("a", 0, 0, 512, 512, 0, 16, "full_frame", 3),
            ("c", 10, 20, 30, 40, 1, 5, "model", 3),
        ],
        columns=COLUMNS,
    )
    known = pd.concat([slices("b", 16, head_first=False, rows=256, columns=1024), slices("c", 9, head_first=True)])
    table = export.study_boxes(boxes, known)
    # b: z_index 4..13 of 16 are the files 12..3; middles 1, 4, .., 13 and, moved up, 14 are files 15, .., 2
    assert table.to_numpy().tolist() == [["b", 50, 100, 101, 302, 3, 12, 15], ["c", 10, 20, 30, 40, 2, 5, 8]]


def test_slice_boxes_have_inclusive_ends_and_a_centre_where_nothing_is():
    known = slices("a", 2, head_first=False, rows=400, columns=512)
    known[BOX] = [[-1] * 4, [10, 20, 30, 50]]
    table = export.slice_boxes(known, FOLDS)
    assert table.columns.tolist() == [export.ID, "slice_number", *BOX, "has_box", "height", "width", "fold"]
    assert table.to_numpy().tolist() == [
        ["a", 1, 10, 20, 29, 49, 1, 19, 29, 1],
        ["a", 2, 256, 200, 256, 200, 0, 0, 0, 1],
    ]


def test_pseudo_labels_have_three_decimals_and_stand_in_the_order_of_the_files():
    pseudo = pd.DataFrame({"id": "a", "z_index": [0, 1]})
    pseudo[[*LEVELS, *FRACTURES]] = np.float32(0)
    pseudo["C2"], pseudo["C2_frac"] = np.float32([0.1234, 0.9]), np.float32([0.1234, 0.9])
    table = export.pseudo_labels(pseudo, slices("a", 2, head_first=False), FOLDS)
    assert table.columns.tolist()[:3] == [export.ID, "slice_number", "C1_pred"] and table["fold"].tolist() == [1, 1]
    assert table["slice_number"].tolist() == [1, 2] and table["C2_pred"].tolist() == [0.9, 0.123]
    assert table["C2_frac"].to_csv(index=False, header=False).split() == ["0.9", "0.123"]


def test_ratios_of_slices_are_minus_one_in_a_study_without_segmentation():
    known = pd.concat([slices("a", 1, head_first=True), slices("b", 1, head_first=True)], ignore_index=True)
    known[list(LEVELS)] = [[np.nan] * 7, [0.5, *[0.0] * 6]]
    labels = pd.DataFrame({"id": ["a", "b"], **dict.fromkeys(TARGETS, 1), "fold": [1, 0]})
    table = export.image_level(known, labels)
    assert table.loc[0, [*LEVELS, "BG", "T12"]].tolist() == [-1] * 9
    assert table.loc[1, ["C1", "C2", "zpos", "patient_overall", "fold"]].tolist() == [0.5, 0, 0, 1, 0]
    assert pd.isna(table.loc[1, "BG"])


def test_the_export_of_a_cache_holds_every_slice_and_the_same_bytes_again(tiny_cache, true_boxes, tmp_path):
    cache = Cache(tiny_cache)
    for _ in range(2):
        files = {file.name: file for file in export.write(tmp_path, cache)}
        before = {name: file.read_bytes() for name, file in files.items()}
    assert {name: file.read_bytes() for name, file in files.items()} == before
    every = pd.read_csv(files["train_all_slices_v01.csv.gz"])
    assert len(every) == 6 * 30 and every.groupby(export.ID)["slice_number"].is_monotonic_increasing.all()
    assert pd.read_csv(files["train_bbox_v01.csv.gz"])[export.ID].nunique() == 4
    assert "train_bbox_pred_v02.csv.gz" not in files
    write_table(tmp_path / "study_boxes.parquet", pd.read_parquet(true_boxes), "truth", {})
    (made,) = (file for file in export.write(tmp_path, cache) if file.name == "train_bbox_pred_v02.csv.gz")
    assert len(pd.read_csv(made)) == 6
