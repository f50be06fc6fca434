"""Calibrations of data whose distortion is known, and calibration.json beside the tables that it is of."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from cache_schema import LEVELS, TARGETS, Cache, CacheWriter
from cache_schema.documents import canonical_json, digest_of
from cache_schema.errors import CacheError
from cache_schema.tables import read_table, table_meta, write_table
from trainer.leakage import lineage
from trainer.leakage.groups import to_table
from trainer.look import reliability as look
from trainer.look.__main__ import main as draw
from trainer.look.page import drawing
from trainer.process.command import warn_once
from trainer.scores import reliability
from trainer.scores.calibration import CLIP, Calibration, calibrate, calibrate_target, cross_fitted, logits, render
from trainer.scores.reliability import auc, bin_edges, calibration_error, operating_point, roc
from trainer.tables.__main__ import main

RUN = "study_fracture-04F/fold{}-seed1"


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def drawn(n: int, slope: float = 1.0, shift: float = 0.0, seed: int = 0):
    """Probabilities whose logits are `slope` x the true ones + `shift`; labels; folds."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 1.5, n)
    labels = (rng.random(n) < sigmoid(true)).astype(float)
    return sigmoid(slope * true + shift), labels, np.arange(n) % 5.0


def gap(slope: float, shift: float) -> float:
    """The calibration error of `drawn` in ten bins, without chance: over the normal distribution of the true logits."""
    true = np.sort(np.random.default_rng(9).normal(-1, 1.5, 200_000))
    parts = np.array_split(sigmoid(slope * true + shift) - sigmoid(true), 10)
    return float(np.mean([abs(part.mean()) for part in parts]))


# fitting


@pytest.fixture
def few_draws(monkeypatch):
    """Where bounds are not the question."""
    monkeypatch.setattr(reliability, "BOOTSTRAPS", 20)


def test_a_known_distortion_is_undone(few_draws):
    target = calibrate_target(*drawn(20_000, slope=2, shift=1))
    assert target.method == "platt"
    assert target.slope == pytest.approx(0.5, abs=0.03) and target.intercept == pytest.approx(-0.5, abs=0.05)
    assert target.after.ece.value < 0.01 < 0.05 < target.before.ece.value
    assert target.after.brier.value < target.before.brier.value


def test_overconfidence_alone_is_undone_by_a_temperature(few_draws):
    probabilities, labels, folds = drawn(4000, slope=3, seed=1)
    target = calibrate_target(probabilities, labels, folds)
    assert target.slope == pytest.approx(1 / 3, abs=0.03) and abs(target.intercept) < 0.1
    assert target.method in ("temperature", "platt")
    straight = calibrate_target(*drawn(4000, slope=1, seed=1))
    assert straight.slope == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("seed", range(8))
def test_the_log_loss_of_held_out_studies_is_never_worse_and_mostly_as_predicted_where_that_is_right(few_draws, seed):
    target = calibrate_target(*drawn(60, seed=seed))
    assert target.after.log_loss <= target.before.log_loss
    if target.method == "identity":
        assert target.after == target.before and (target.slope, target.intercept) == (1, 0)


def test_each_fold_is_calibrated_by_the_others_alone(few_draws):
    probabilities, labels, folds = drawn(200, slope=2)
    own = folds == 0
    swapped = np.where(own, 1 - labels, labels)  # of no weight for the calibration of the fold's own studies
    first, second = (cross_fitted("platt", logits(probabilities), truth, folds) for truth in (labels, swapped))
    assert (first[own] == second[own]).all() and (first[~own] != second[~own]).all()


def test_a_model_that_is_wrong_way_round_gets_the_prevalence_and_is_not_turned(few_draws):
    probabilities, labels, folds = drawn(2000)
    target = calibrate_target(1 - probabilities, labels, folds)
    assert target.method == "platt" and target.slope == 0
    assert target(np.array([0.01, 0.99])) == pytest.approx([target.prevalence] * 2, abs=0.001)
    assert [(point.sensitivity.value, point.specificity.value) for point in target.operating_points] == [(1, 0)] * 2


def test_probabilities_of_0_and_1_that_are_wrong_stay_finite(few_draws):
    probabilities = np.array([0, 0, 0, 1, 1, 1, 0, 1] * 5, float)
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 1] * 5, float)
    target = calibrate_target(probabilities, labels, np.arange(40) // 8.0)
    assert math.isfinite(target.before.log_loss) and target.after.log_loss < 0.7 < 3 < target.before.log_loss
    assert target(np.array([0, 1])) == pytest.approx([0.25, 0.75], abs=0.03)
    right = calibrate_target(labels, labels, np.arange(40) // 8.0)
    assert (right(np.array([0, 1])) >= CLIP).all() and (right(np.array([0, 1])) <= 1 - CLIP).all()


def test_all_positives_in_one_fold_leave_a_calibration_that_is_no_worse(few_draws):
    probabilities, labels = np.linspace(0.05, 0.6, 30), np.zeros(30)
    labels[[25, 29]] = 1
    target = calibrate_target(probabilities, labels, (np.arange(30) >= 24).astype(float))
    assert target.method and target.after.log_loss <= target.before.log_loss and math.isfinite(target.intercept)
    assert target.operating_points == () and target.missing == "operating points need 20 positives, there are 2"


@pytest.mark.parametrize(
    ("labels", "folds", "why"),
    [
        ([], [], "no held-out study has a label"),
        ([0, 0, 0], [0, 1, 2], "all labels are 0"),
        ([1, 1], [0, 1], "all labels are 1"),
        ([0, 1, 0], [2, 2, 2], "all studies are of one fold: nothing to cross-fit"),
    ],
)
def test_without_anything_to_cross_fit_there_is_none_and_it_says_why(labels, folds, why):
    target = calibrate_target(np.full(len(labels), 0.3), np.array(labels, float), np.array(folds, float))
    assert target.method is None and target.before is None and target.missing == why
    assert (target.n, target.positives) == (len(labels), sum(labels))


# calibration error, ROC and thresholds


def test_bins_of_equal_count_as_worked_out_by_hand():
    assert bin_edges(23).tolist() == [0, 3, 6, 9, 11, 13, 15, 17, 19, 21], "the first three bins have one more"
    assert bin_edges(4).tolist() == [0, 1, 2, 3]
    values = np.arange(20)[::-1] / 20
    labels = (values >= 0.5).astype(float)
    found = reliability.reliability(np.clip(values, CLIP, 1), labels)
    assert [each.n for each in found.bins] == [2] * 10 and [each.positives for each in found.bins] == [0] * 5 + [2] * 5
    assert found.bins[1].mean == pytest.approx(0.125) and found.bins[9].mean == pytest.approx(0.925)
    by_hand = (0.025 + 0.125 + 0.225 + 0.325 + 0.425 + 0.475 + 0.375 + 0.275 + 0.175 + 0.075) / 10
    assert found.ece.value == pytest.approx(by_hand, abs=1e-6)
    assert found.brier.value == pytest.approx(((values - labels) ** 2).mean(), abs=1e-6)


def test_a_perfect_calibration_shows_no_more_error_than_chance():
    found = [calibration_error(*drawn(400, seed=seed)[:2]) for seed in range(12)]
    assert np.mean([each.value for each in found]) == pytest.approx(np.mean([each.chance for each in found]), rel=0.15)
    assert sum(each.low == 0 for each in found) >= 11
    assert calibration_error(*drawn(20_000)[:2]).value < 0.01


@pytest.mark.parametrize(("slope", "shift"), [(2, 0), (1, 1), (3, -1)])
def test_bounds_cover_the_error_that_is_there(slope, shift):
    found = [calibration_error(*drawn(200, slope, shift, seed)[:2]) for seed in range(25)]
    assert sum(each.low <= gap(slope, shift) <= each.high for each in found) >= 21


def test_bounds_of_the_brier_score_and_the_area_cover_those_of_many_studies():
    many = reliability.reliability(*drawn(20_000)[:2]).brier.value, auc(*drawn(20_000)[:2]).value
    hits = [0, 0]
    for seed in range(1, 13):
        probabilities, labels, _ = drawn(150, seed=seed)
        for place, one in enumerate((reliability.reliability(probabilities, labels).brier, auc(probabilities, labels))):
            assert one.low < one.value < one.high
            hits[place] += one.low <= many[place] <= one.high
    assert min(hits) >= 10


def test_large_data_are_resampled_in_parts_to_the_same_draws(monkeypatch):
    probabilities, labels, _ = drawn(50)
    whole = auc(probabilities, labels), calibration_error(probabilities, labels)
    monkeypatch.setattr(reliability, "CELLS", 7000)
    assert whole == (auc(probabilities, labels), calibration_error(probabilities, labels))


def test_roc_and_area_with_ties_as_worked_out_by_hand():
    values, labels = np.array([0.1, 0.4, 0.4, 0.8, 0.8, 0.9]), np.array([0, 0, 1, 0, 1, 1.0])
    assert roc(values, labels) == ((0, 0), (0, 1), (2, 3), (3, 3)), "0.8 and 0.4 lie on one line"
    assert auc(values, labels).value == pytest.approx((1.5 + 2.5 + 3) / 9), "negatives below 0.4, 0.8 and 0.9"


def test_a_threshold_is_the_highest_that_reaches_its_sensitivity():
    labels = np.array([0, 0, 0, 0, 1] * 20, float)
    values = np.arange(1, 101) / 101
    point = operating_point(values, labels, 0.9)
    assert point.threshold == pytest.approx(14.5 / 101), "18 of 20 positives, at 15, 20, .. 100"
    assert point.sensitivity.value == 0.9 and point.specificity.value == 12 / 80
    assert point.specificity.low < 12 / 80 < point.specificity.high
    assert operating_point(values, labels, 0.95).sensitivity.value == 0.95
    assert operating_point(np.full(100, 0.3), labels, 0.9).specificity.value == 0


# the document


def table_of(n: int = 60) -> tuple[pd.DataFrame, pd.DataFrame]:
    """study_predictions and labels of n studies; C7 has no fracture, C1 few, one study has no fold, and one no label of C2."""
    ids = [f"s{place:03}" for place in range(n)]
    columns = {name: drawn(n, 2, 0.5, seed) for seed, name in enumerate(TARGETS)}
    folds = pd.array([None, *(place % 3 for place in range(1, n))], "Int64")
    predictions = pd.DataFrame({"id": ids, "fold": folds} | {name: each[0] for name, each in columns.items()})
    labels = pd.DataFrame({"id": ids} | {name: pd.array(each[1], "Int8") for name, each in columns.items()})
    labels["C7"] = pd.array([0] * n, "Int8")
    labels["C1"] = pd.array([0, 1, 1] + [0] * (n - 3), "Int8")
    labels.loc[5, "C2"] = None
    return predictions.assign(runs=1), labels


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibrate(*table_of(), "calibration 1", {"labels": "0" * 64})


def test_only_held_out_studies_with_a_label_count(made):
    assert made.targets["patient_overall"].n == 59 and made.targets["C2"].n == 58
    assert made.targets["C1"].positives == 2 and made.targets["C7"].missing == "all labels are 0"
    assert list(made.targets) == list(TARGETS) and "C7" not in made.usable


def test_a_document_reads_back_and_names_its_digest(made, tmp_path):
    path = tmp_path / "calibration.json"
    made.write(path)
    assert Calibration.read(path) == made
    document = json.loads(path.read_bytes())
    assert document == made.document() and document.pop("digest") == digest_of(document)
    assert list(Calibration.read(path).targets) == list(TARGETS)
    assert Calibration.from_document(made.document()) == made


def sealed(change, document: dict) -> bytes:
    document.pop("digest")
    change(document)
    return canonical_json(document | {"digest": digest_of(document)})


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["targets"].update(C9=document["targets"]["C1"]),
        lambda document: document["targets"]["C2"].update(slope=-1.0),
        lambda document: document["targets"]["C2"].update(method="guess"),
        lambda document: document["targets"]["C2"].pop("n"),
        lambda document: document.pop("targets"),
        lambda document: document.update(targets=[1]),
    ],
)
def test_a_document_that_is_none_is_one_line(change, made, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_bytes(sealed(change, made.document()))
    with pytest.raises(
        CacheError, match=r"calibration\.json: cannot be read as a calibration; make it again"
    ) as raised:
        Calibration.read(path)
    assert "\n" not in str(raised.value)


def test_a_flip_anywhere_in_the_file_is_refused(made, tmp_path):
    path = tmp_path / "calibration.json"
    made.write(path)
    data = path.read_bytes()
    for place in range(0, len(data), 997):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CacheError):
            Calibration.read(path)
    for other in (b"", b"[]", b"null", b"{}", data[:-1], data + b" "):
        path.write_bytes(other)
        with pytest.raises(CacheError):
            Calibration.read(path)


def test_one_study_and_a_table_are_calibrated_alike(made):
    predictions = table_of()[0]
    frame = made.columns(predictions)
    given = list(predictions.columns)
    assert list(frame.columns) == given + [f"{name}_calibrated" for name in TARGETS if name != "C7"]
    pd.testing.assert_frame_equal(frame[given], predictions)
    outputs = predictions.loc[7, list(TARGETS)].to_dict()
    calibrated = made.apply(outputs)
    assert set(calibrated) == set(TARGETS) - {"C7"}
    for name, value in calibrated.items():
        assert value == pytest.approx(frame.loc[7, f"{name}_calibrated"], rel=1e-12) and 0 < value < 1
    assert made.apply({"C2": 0.5, "unknown": 0.1}).keys() == {"C2"}
    assert math.isnan(made.apply({"C2": math.nan})["C2"])


def test_the_text_table_has_a_line_for_each_target(made):
    lines = render(made).splitlines()
    assert (
        len(lines) == 10 and lines[8].split()[:4] == ["C7", "59", "0", "none"] and lines[8].endswith("all labels are 0")
    )
    target = made.targets["C3"]
    assert lines[4].split()[:6] == [
        "C3", "59", str(target.positives), target.method, f"{target.before.log_loss:.4f}", f"{target.after.log_loss:.4f}"
    ]  # fmt: skip


def test_the_figure_shows_bins_and_roc_of_each_target(made):
    with drawing():
        (figure,) = look.pages(made)
    assert len(figure.axes) == 2 * len(TARGETS)
    left, right = figure.axes[6], figure.axes[7]  # of C3
    assert left.get_title("left") == "C3"
    bins = made.targets["C3"].after.bins
    np.testing.assert_allclose(left.lines[2].get_xydata(), [(each.mean, each.positives / each.n) for each in bins])
    np.testing.assert_allclose(right.lines[1].get_xydata()[[0, -1]], [(0, 0), (1, 1)])
    assert "no calibration: all labels are 0" in figure.axes[14].texts[0].get_text()


# beside the tables of RUNS


def put_predictions(runs, cache: Cache, exposure=None, leave_out=0) -> None:
    """Held-out predictions of both folds, as of a run that is gone; with what its weights have seen."""
    labels = cache.labels
    for fold in (0, 1):
        own = labels[labels["fold"] == fold].iloc[leave_out:]
        frame = pd.DataFrame({"id": own["id"]} | {name: 0.2 + 0.5 * own[name].astype(float) for name in TARGETS})
        folder = runs / RUN.format(fold)
        write_table(folder / "predictions.parquet", frame, "by hand", {"split": "held_out", "run": "r"})
        if exposure is not None:
            write_table(folder / "exposure.parquet", to_table(exposure(fold)), "exposure", {"run": "r"})


def seen(cache: Cache, *, own: bool):
    """fold -> the exposure of a run that has trained on the labels of that fold, or of the other one."""
    labels = cache.labels
    return lambda fold: lineage.used(RUN.format(fold), labels.loc[(labels["fold"] == fold) == own, "id"], lineage.LABEL)


@pytest.fixture
def runs(tiny_cache, tmp_path):
    warn_once.cache_clear()
    put_predictions(tmp_path / "runs", Cache(tiny_cache), seen(Cache(tiny_cache), own=False))
    return tmp_path / "runs"


def test_it_is_made_after_study_predictions_and_names_what_it_is_of(runs, tiny_cache, capfd):
    path = runs / "tables/calibration.json"
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    said = capfd.readouterr().out
    found = Calibration.read(path)
    assert render(found) in said and found.targets["patient_overall"].n == 6
    assert found.inputs["study_predictions"] == table_meta(runs / "tables/study_predictions.parquet")["digest"]
    assert set(found.inputs) == {"study_predictions", "study_predictions exposure", "labels"}
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    assert main([str(runs), f"cache={tiny_cache}"]) == 0 and path.stat().st_mtime_ns == time, "up to date"
    path.write_bytes(before[:200] + before[201:])
    capfd.readouterr()
    assert main([str(runs), f"cache={tiny_cache}"]) == 0 and path.read_bytes() == before
    assert capfd.readouterr().err.count("calibration.json is made again") == 1
    path.unlink()
    assert main([str(runs), f"cache={tiny_cache}"]) == 0 and path.read_bytes() == before


def test_other_labels_make_another(runs, tiny_cache, tmp_path):
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    assert main([str(runs), f"cache={cache}"]) == 0
    path = runs / "tables/calibration.json"
    before, table = Calibration.read(path), read_table(runs / "tables/study_predictions.parquet")
    labels = Cache(cache).labels
    for level in (TARGETS[0], *LEVELS):
        labels[level] = 1 - labels[level]
    CacheWriter(cache).finish(labels=labels)
    assert main([str(runs), f"cache={cache}"]) == 0
    after = Calibration.read(path)
    assert after.inputs["labels"] != before.inputs["labels"] and after.targets != before.targets
    assert read_table(runs / "tables/study_predictions.parquet").equals(table)


@pytest.mark.parametrize("why", ["seen", "left out"])
def test_predictions_whose_scores_are_refused_give_none_and_the_old_one_goes(why, runs, tiny_cache, capfd):
    path, cache = runs / "tables/calibration.json", Cache(tiny_cache)
    assert main([str(runs), f"cache={tiny_cache}"]) == 0 and path.is_file()
    put = partial(put_predictions, runs, cache)
    put(seen(cache, own=True)) if why == "seen" else put(seen(cache, own=False), leave_out=1)
    capfd.readouterr()
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("calibration.json: not made: ")]
    assert len(lines) == 1 and "may not be scored" in lines[0] and not path.exists()


def test_where_nothing_was_held_out_it_says_so_and_makes_none(runs, tiny_cache, tmp_path, capfd):
    cache, path = shutil.copytree(tiny_cache, tmp_path / "cache"), runs / "tables/calibration.json"
    assert main([str(runs), f"cache={cache}"]) == 0 and path.is_file()
    CacheWriter(cache).finish(labels=Cache(cache).labels.assign(fold=pd.array([None] * 6, "Int8")))
    (runs / "tables/study_predictions.parquet").unlink()
    capfd.readouterr()
    main([str(runs), f"cache={cache}"])
    assert "calibration.json: not made: no study with labels was held out\n" in capfd.readouterr().out
    assert not path.exists()


def test_it_is_drawn_where_it_is_there(runs, tiny_cache, capfd):
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    capfd.readouterr()
    assert draw([f"tables={runs}"]) == 0 and "reliability-01.png" in capfd.readouterr().out
    (runs / "tables/calibration.json").write_text("{}")
    assert draw([f"tables={runs}"]) == 1
