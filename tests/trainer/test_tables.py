"""Predictions to tables, on cases small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import FRACTURES
from cache_schema.errors import CacheError
from trainer.tables.boxes import COLUMNS, outliers, report, segmentation_box, study_boxes, z_range
from trainer.tables.pseudo import pseudo_labels
from trainer.tables.ratios import vertebra_ratios
from trainer.tables.settings import table_settings
from trainer.tables.studies import study_predictions, submission

BOX = ["x0", "y0", "x1", "y1"]


def bbox_run(id: str, has_box: list[float], boxes: list[list[float]] | None = None) -> pd.DataFrame:
    """One run's predictions of one study at middle slices 1, 4, 7, .."""
    n = len(has_box)
    frame = pd.DataFrame({"id": id, "z_index": 1 + 3 * np.arange(n)})
    frame[BOX] = np.array(boxes if boxes is not None else [[100, 110, 200, 220]] * n, float)
    return frame.assign(has_box=has_box)


def studies(**slices: int) -> pd.DataFrame:
    return pd.DataFrame([(id, 400, 512, n) for id, n in slices.items()], columns=["id", "rows", "columns", "slices"])


def ranges(has_box: list[float]) -> tuple[int, int]:
    return z_range(bbox_run("a", has_box)[["z_index", "has_box"]])


# study boxes


def test_a_box_is_the_hull_of_the_slices_above_one_half_in_whole_native_pixels():
    boxes = [[0, 0, 500, 390], [100.7, 120, 300.2, 250], [90, 130.2, 250, 260.01], [0, 0, 512, 400]]
    table = study_boxes([bbox_run("a", [0.5, 0.6, 0.9, 0.4], boxes)], studies(a=12))
    assert list(table.columns) == COLUMNS
    assert table.loc[0, BOX].tolist() == [90, 120, 301, 261]
    assert table.loc[0, "source"] == "model" and table.loc[0, "runs"] == 1


def test_a_box_is_clipped_to_its_own_frame():
    table = study_boxes([bbox_run("a", [0.9] * 3, [[-5, -0.2, 700, 405]] * 3)], studies(a=9))
    assert table.loc[0, BOX].tolist() == [0, 0, 512, 400]


def test_seeds_are_averaged_slice_by_slice_before_the_thresholds():
    one = bbox_run("a", [0.9, 0.9, 0.9], [[100, 100, 200, 200], [100, 100, 200, 200], [10, 10, 20, 20]])
    two = bbox_run("a", [0.9, 0.9, 0.0], [[120, 100, 240, 200], [100, 100, 200, 200], [10, 10, 20, 20]])
    table = study_boxes([one, two], studies(a=9))
    assert table.loc[0, BOX].tolist() == [100, 100, 220, 200], "0.45 on average keeps the outlier of the last slice out"
    assert table.loc[0, "runs"] == 2
    extreme = study_boxes([one, two], studies(a=9), over_seeds="extreme")
    assert extreme.loc[0, BOX].tolist() == [10, 10, 240, 200]


def test_a_table_does_not_depend_on_the_order_of_runs_or_rows():
    rng = np.random.default_rng(0)
    runs = [
        bbox_run("a", rng.random(9).tolist(), (rng.random((9, 4)) * 100 + [0, 0, 100, 100]).tolist()) for _ in range(3)
    ]
    shuffled = [run.sample(frac=1, random_state=1) for run in runs[::-1]]
    pd.testing.assert_frame_equal(study_boxes(runs, studies(a=27)), study_boxes(shuffled, studies(a=27)))


def test_runs_of_other_folds_bring_other_studies():
    table = study_boxes(
        [bbox_run("b", [0.9] * 3), bbox_run("a", [0.9] * 4), bbox_run("a", [0.9] * 4)], studies(a=12, b=9)
    )
    assert table["id"].tolist() == ["a", "b"] and table["runs"].tolist() == [2, 1]


def test_a_study_without_a_confident_slice_keeps_the_full_frame_and_all_slices():
    table = study_boxes([bbox_run("a", [0.0, 0.3, 0.5, 0.2])], studies(a=13))
    assert table.iloc[0].tolist() == ["a", 0, 0, 512, 400, 0, 13, "full_frame", 1]


def test_a_box_turned_inside_out_is_no_box():
    table = study_boxes([bbox_run("a", [0.9] * 3, [[200, 110, 100, 220]] * 3)], studies(a=9))
    assert table.loc[0, "source"] == "full_frame"


def test_a_study_without_predictions_is_refused_by_name():
    with pytest.raises(CacheError, match="1 studies have no bbox prediction, first b"):
        study_boxes([bbox_run("a", [0.9] * 3)], studies(a=9, b=9))
    with pytest.raises(CacheError, match="no predictions"):
        study_boxes([], studies(a=9))


# z-range


def test_the_z_range_spans_the_rows_whose_rolling_mean_exceeds_a_tenth():
    # The mean at row i covers i-2..i+2, so one sure row is felt two rows away on either side.
    assert ranges([0] * 5 + [1] + [0] * 5) == (1 + 3 * 3, 1 + 3 * 7 + 1)
    assert ranges([0] * 5 + [0.5] + [0] * 5) == (1, 1 + 3 * 10 + 1), "0.1 itself does not exceed a tenth: all rows"
    assert ranges([0] * 5 + [0.51] + [0] * 5) == (10, 23)


def test_the_rolling_mean_at_the_ends_takes_the_rows_there_are():
    # Row 0 averages rows 0..2: 0.31 / 3 exceeds a tenth there, 0.31 / 4 at row 1 does not.
    assert ranges([0, 0, 0.31] + [0] * 6) == (1, 2)


def test_a_gap_inside_the_range_is_kept():
    assert ranges([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]) == (1 + 3, 1 + 3 * 13 + 1)


def test_fewer_than_three_rows_keep_all():
    assert ranges([0.9, 0.9]) == (1, 5)


def test_the_z_range_follows_slices_not_the_order_of_rows():
    frame = bbox_run("a", [0] * 5 + [1] + [0] * 5)
    assert z_range(frame.iloc[::-1]) == (10, 23)


# boxes from segmentations, outliers


def test_a_segmentations_box_is_the_hull_of_its_slices():
    slice_box = np.array([[-1] * 4, [50, 60, 80, 90], [40, 65, 70, 99], [-1] * 4, [45, 61, 70, 80], [-1] * 4], np.int16)
    row = segmentation_box("a", slice_box, 400, 512)
    assert list(row.values()) == ["a", 40, 60, 80, 99, 1, 5, "segmentation", 0]
    empty = segmentation_box("a", np.full((6, 4), -1, np.int16), 400, 512)
    assert list(empty.values()) == ["a", 0, 0, 512, 400, 0, 6, "full_frame", 0]


def test_outliers_in_area_and_aspect_are_named():
    rows = [(f"s{i}", 100, 100, 200 + i, 200, 0, 9, "model", 1) for i in range(20)]
    rows += [("large", 0, 0, 400, 400, 0, 9, "model", 1), ("flat", 100, 100, 300, 150, 0, 9, "model", 1)]
    rows += [("whole", 0, 0, 512, 512, 0, 9, "full_frame", 1)]
    found = outliers(pd.DataFrame(rows, columns=COLUMNS))
    assert set(zip(found["id"], found["quantity"], strict=True)) == {("large", "area"), ("flat", "aspect")}
    assert found.set_index("id").at["flat", "value"] == 4.0
    assert outliers(pd.DataFrame([], columns=COLUMNS)).empty


def test_what_is_unusual_about_boxes_is_said_in_lines():
    rows = [(f"s{i}", 100, 100, 200 + i, 200, 0, 9, "model", 1) for i in range(20)]
    assert report(pd.DataFrame(rows, columns=COLUMNS)) == ""
    rows += [("flat", 100, 100, 300, 150, 0, 9, "model", 1), ("whole", 0, 0, 512, 512, 0, 9, "full_frame", 1)]
    lines = report(pd.DataFrame(rows, columns=COLUMNS)).splitlines()
    assert lines[0] == "study_boxes: 1 of 22 studies keep the full frame, first whole"
    assert lines[1].startswith("study_boxes: the box of flat has aspect 4 beside the median 1.1, ")


def test_a_margin_widens_what_is_there_inside_the_frame():
    small = pd.DataFrame({"id": ["a"], "rows": [100], "columns": [300], "slices": [20]})
    frame = bbox_run("a", [1.0] * 4, [[20.2, 30.0, 289.5, 60.5]] * 4)
    assert study_boxes([frame], small, box_margin=16).loc[0, BOX].tolist() == [4, 14, 300, 77]
    inside_out = bbox_run("a", [1.0] * 4, [[50.0, 30.0, 40.0, 60.0]] * 4)
    assert study_boxes([inside_out], small, box_margin=16).loc[0, "source"] == "full_frame"


def test_every_threshold_can_be_set():
    frame = bbox_run("a", [0.3] * 2 + [0.5] + [0.3] * 8)
    assert study_boxes([frame], studies(a=33)).loc[0, "source"] == "full_frame"
    table = study_boxes([frame], studies(a=33), presence=0.4, z_presence=0.45, rolling_rows=1)
    assert table.loc[0, ["source", "z_from", "z_to"]].tolist() == ["model", 7, 8]
    assert table_settings({"presence": "0.4"}).of("study_boxes")["presence"] == "0.4"
    assert table_settings({"presence": "0.4"}).of("pseudo_labels") == {}


# ratios and pseudo labels


def ratio_run(id: str, values: dict[int, float], windows: int = 1) -> pd.DataFrame:
    """C1 as given by z_index, the other levels 0."""
    frame = pd.DataFrame({"id": id, "z_index": list(values), "windows": windows})
    frame[list(LEVELS)] = 0.0
    frame["C1"] = list(values.values())
    return frame


def test_each_window_counts_once_whatever_run_it_came_from():
    table = vertebra_ratios([ratio_run("a", {0: 0.2, 1: 0.4}, windows=3), ratio_run("a", {1: 0.8}, windows=1)])
    assert table["z_index"].tolist() == [0, 1]
    assert table["C1"].tolist() == pytest.approx([0.2, (3 * 0.4 + 0.8) / 4])
    assert list(table.columns) == ["id", "z_index", *LEVELS]


def test_ratios_are_clipped_after_they_are_averaged():
    table = vertebra_ratios([ratio_run("a", {0: 1.4, 1: -0.3}), ratio_run("a", {0: 0.2, 1: -0.1})])
    assert table["C1"].tolist() == pytest.approx([0.8, 0.0])


def test_pseudo_labels_are_rounded_ratios_times_the_studys_labels():
    ratios = vertebra_ratios([ratio_run("a", {0: 0.12345, 1: 0.0004, 2: 0.0006}), ratio_run("b", {0: 0.9})])
    labels = pd.DataFrame([("a", 1, *[0] * 6), ("b", 0, *[1] * 6)], columns=["id", *LEVELS])
    table = pseudo_labels(ratios, labels)
    assert table["C1"].tolist() == np.float32([0.123, 0, 0.001, 0.9]).tolist()
    assert table["C1_frac"].tolist() == np.float32([0.123, 0, 0.001, 0]).tolist()
    assert not table[list(FRACTURES[1:])].to_numpy().any()
    assert set(table.dtypes[[*LEVELS, *FRACTURES]]) == {np.dtype("float32")}


def test_fractures_of_unknown_labels_are_unknown():
    ratios = vertebra_ratios([ratio_run("a", {0: 0.5}), ratio_run("unlisted", {0: 0.5})])
    labels = pd.DataFrame([("a", 1, None, 0, 0, 0, 0, 0)], columns=["id", *LEVELS])
    table = pseudo_labels(ratios, labels)
    assert table.loc[0, ["C1_frac", "C3_frac"]].tolist() == [0.5, 0.0] and np.isnan(table.loc[0, "C2_frac"])
    assert table.loc[1, list(FRACTURES)].isna().all() and table.loc[1, "C1"] == 0.5


# study predictions and submission


def study_run(**overall: float) -> pd.DataFrame:
    frame = pd.DataFrame({"id": list(overall), "patient_overall": list(overall.values())})
    frame[list(LEVELS)] = 0.25
    return frame


def test_study_predictions_are_means_over_the_runs_a_study_has():
    labels = pd.DataFrame({"id": ["a", "b"], "fold": [1, 0]})
    table = study_predictions([study_run(b=0.2, a=0.5), study_run(b=0.6), study_run(c=1.0)], labels)
    assert list(table.columns) == ["id", "fold", *TARGETS, "runs"]
    assert table["id"].tolist() == ["a", "b", "c"] and table["runs"].tolist() == [1, 2, 1]
    assert table["patient_overall"].tolist() == pytest.approx([0.5, 0.4, 1.0])
    assert table["fold"].tolist()[:2] == [1, 0] and table["fold"].isna().tolist() == [False, False, True]


def test_a_submission_has_eight_rows_a_study_in_the_competitions_form():
    table = study_predictions([study_run(**{"1.2.9": 0.75, "1.2.10": 0.5})], pd.DataFrame({"id": [], "fold": []}))
    frame = submission(table)
    assert list(frame.columns) == ["row_id", "fractured"]
    assert frame["row_id"].tolist() == [f"{id}_{target}" for id in ("1.2.10", "1.2.9") for target in TARGETS]
    assert frame["fractured"].tolist() == [0.5] + [0.25] * 7 + [0.75] + [0.25] * 7
