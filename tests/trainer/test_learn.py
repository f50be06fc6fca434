"""The learning checks themselves, on truth small enough to work out by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache_schema import LEVELS, TARGETS
from trainer.scores.scores import Score
from trainer.tables.boxes import COLUMNS

sys.path.append(str(Path(__file__).resolve().parents[1] / "learn"))

from checks import (
    beats_baselines,
    boxes_keep_the_neck,
    heat_maps_point_at_the_fracture,
    levels_are_found,
    named_slices_lie_in_the_vertebra,
    permuted_labels_teach_nothing,
    twins_rank,
)
from control import permuted

RNG = np.random.default_rng(0)


@pytest.fixture
def truth(tmp_path) -> Path:
    """One study of 12 slices: C1 on slices 3..5, C2 on 6..8, each of 4 x 5 pixels, T1 below."""
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[3:6, 10:14, 20:25], labels[6:9, 10:14, 20:25], labels[9:] = 1, 2, 8
    np.savez_compressed(tmp_path / "a.npz", labels=labels)
    return tmp_path


def box(*numbers: int) -> pd.DataFrame:
    return pd.DataFrame([("a", *numbers, "model", 1)], columns=COLUMNS)


def test_voxels_outside_the_box_or_the_range_are_counted(truth):
    index = pd.DataFrame({"id": ["a"], "rows": 40, "columns": 40, "slices": 12})
    whole = boxes_keep_the_neck(box(20, 10, 25, 14, 4, 8), truth, index)
    assert whole.well and "100.000% of voxels" in whole.found
    late = boxes_keep_the_neck(box(20, 10, 25, 14, 5, 8), truth, index)
    assert not late.well and "83.333% of voxels, 100.000% in what" in late.found, "stage 4 adds two slices"
    narrow = boxes_keep_the_neck(box(20, 10, 24, 14, 4, 8), truth, index)
    assert not narrow.well and "80.000%" in narrow.found


def test_the_level_with_the_highest_ratio_is_looked_for_where_there_is_one(truth):
    ratios = pd.DataFrame({"id": "a", "z_index": np.arange(12), **dict.fromkeys(LEVELS, 0.0)})
    ratios.loc[2:6, "C1"], ratios.loc[7:8, "C2"] = 0.5, 0.2
    check = levels_are_found(ratios, truth)
    assert check.well and check.found == "83.3% of 6"


def test_twins_are_compared_at_their_level():
    twins = pd.DataFrame(
        [("w1", "b1", "C2"), ("w2", "b2", "C7"), ("w3", "b3", "C1")], columns=["whole", "broken", "level"]
    )
    table = pd.DataFrame({"id": ["w1", "b1", "w2", "b2", "w3", "b3"], **dict.fromkeys(TARGETS, 0.5)})
    table["C2"], table["C7"] = [0.1, 0.2, 0, 0, 0, 0], [0, 0, 0.1, 0.3, 0.9, 0.0]
    check = twins_rank(table, twins)
    assert check.well and check.found.startswith("2 of 3 at its level (median difference 0.100), 0 overall")


@pytest.mark.parametrize(("z_index", "well"), [(7, True), (5, False)])
def test_the_slice_to_look_at_must_show_the_level(z_index, well, truth):
    labels = pd.DataFrame([("a", 0, 1, 0, 0, 0, 0, 0)], columns=["id", *LEVELS])
    where = pd.DataFrame(
        [("a", "C1", 11, 0.9), ("a", "C2", z_index, 0.4)], columns=["id", "level", "z_index", "fracture"]
    )
    check = named_slices_lie_in_the_vertebra(where, labels, truth)
    assert check.well == well and check.found == f"{int(well)} of 1"


def test_a_peak_must_lie_near_the_plane_and_on_a_slice_of_the_level(tmp_path):
    fracture = {"point_mm": [10.0, 0.0, -4.0], "normal": [2.0, 0.0, 0.0]}
    level = {"z_from": 3, "z_to": 6, "fracture": fracture}
    described = {
        "levels": {"C2": level},
        "pixel_mm": 0.5,
        "first_pixel_mm": [0.0, 0.0],
        "z_mm": list(range(0, -12, -1)),
    }
    (tmp_path / "a.json").write_text(json.dumps(described))
    near, far = 20.5 + 19, 20.5 + 21  # pixels: the plane is at 10 mm, which is the centre of pixel 20
    rows = [("heat map", 3, near, 0), ("heat map", 5, near, 99), ("heat map", 6, near, 0), ("heat map", 5, far, 0)]
    rows += [("random points", 4, near, 0), ("shuffled weights", 4, far, 0)]
    peaks = pd.DataFrame(rows, columns=["made_by", "z_index", "x", "y"]).assign(id="a", level="C2")
    found = list(heat_maps_point_at_the_fracture(peaks, tmp_path))
    assert [check.found for check in found] == ["50.0% of 4", "100.0% of 1", "0.0% of 1"]
    assert [check.well for check in found] == [False, False, True]
    good = heat_maps_point_at_the_fracture(peaks[peaks["x"] == near].query("z_index < 6"), tmp_path)
    assert next(good).well


def score(stage: str, metric: str, low: float, high: float) -> Score:
    return Score(stage, "x", "held_out", 9, metric, 1.0, "training constants", 1.0, (low + high) / 2, low, high)


def test_a_bound_must_lie_on_the_right_side_of_one():
    scores = [score("bbox", "iou", 1.1, 1.3), score("vertebrae", "weighted_squared_error", 0.9, 1.01)]
    scores += [score("study_fracture", "weighted_log_loss", 0.7, 0.9)]
    scores += [score("study_fracture", "weighted_log_loss:C1", 0.9, 1.4)]
    found = beats_baselines(scores)
    assert [check.well for check in found] == [False, True, False, True]
    assert str(found[0]) == "slice_fracture beats its baseline: no held-out score"
    assert not permuted_labels_teach_nothing(scores).well
    assert permuted_labels_teach_nothing([score("study_fracture", "weighted_log_loss", 0.9, 1.01)]).well


def test_permuted_labels_keep_each_fold_s_rows_and_nothing_else():
    labels = pd.DataFrame({"id": [f"s{i}" for i in range(60)], **{name: RNG.integers(0, 2, 60) for name in TARGETS}})
    labels["fold"] = np.arange(60) % 3
    shuffled = permuted(labels, seed=1).assign(fold=labels["fold"])
    assert shuffled["id"].tolist() == labels["id"].tolist()
    for fold in range(3):
        rows = [sorted(map(tuple, t.loc[t["fold"] == fold, list(TARGETS)].to_numpy())) for t in (labels, shuffled)]
        assert rows[0] == rows[1]
    assert (shuffled[list(TARGETS)] != labels[list(TARGETS)]).any(axis=1).sum() > 20
