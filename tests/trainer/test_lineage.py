"""Who has seen whose label: leaks planted some nodes upstream are refused with the way they took."""

import pandas as pd
import pytest

from cache_schema import LEVELS, Cache
from cache_schema.tables import content_digest, read_table, write_table
from trainer.leakage import lineage
from trainer.leakage.exposure import check_scorable, of_run
from trainer.leakage.groups import LABEL, SEGMENTATION, Exposure, pairs_of, to_table
from trainer.leakage.lineage import ForbiddenScore
from trainer.run import run
from trainer.runs.file_names import EXPOSURE_FILE
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.tables import make
from trainer.tables.scoring import exposure_report, score_runs

TRAIN, HELD_OUT = ["t1", "t2"], ["s1", "s2"]
BONES, BACKBONE, SCORED = (
    "vertebrae-02G/fold0-seed1",
    "slice_fracture-04F/fold0-seed1",
    "study_fracture-04F/fold0-seed1",
)


def chain(vertebrae: Exposure) -> Exposure:
    """Exposure of a stage-4 run of fold 0: vertebrae run -> ratios -> pseudo labels -> backbone -> it."""
    ratios = lineage.of_predictions("vertebra_ratios", [(vertebrae, TRAIN + HELD_OUT)])
    pseudo = lineage.merged(
        [
            lineage.own_labels("pseudo_labels", TRAIN + HELD_OUT),
            lineage.into_rows("pseudo_labels", ratios, TRAIN + HELD_OUT),
        ]
    )
    backbone = lineage.into_weights(BACKBONE, pseudo, rows=TRAIN)
    return lineage.merged([lineage.used(SCORED, TRAIN, LABEL), lineage.into_weights(SCORED, backbone, role="backbone")])


def test_an_honest_chain_may_be_scored():
    exposure = chain(lineage.used(BONES, TRAIN, SEGMENTATION))
    lineage.refuse_exposed("labels", exposure, HELD_OUT)
    assert lineage.seen_by_weights(exposure, LABEL) == set(TRAIN)


def test_a_label_used_three_nodes_upstream_is_refused_with_the_way_it_took():
    leaking = lineage.merged([lineage.used(BONES, TRAIN, SEGMENTATION), lineage.used(BONES, ["s2"], LABEL)])
    with pytest.raises(ForbiddenScore) as error:
        lineage.refuse_exposed("labels", chain(leaking), HELD_OUT)
    way = f"{SCORED} <- backbone {BACKBONE} <- pseudo_labels row t1 <- vertebra_ratios row t1 <- {BONES} <- label of s2"
    assert str(error.value).startswith(f"study s2: may not be scored: {way};")


def test_the_way_that_is_named_is_a_shortest():
    exposure = lineage.merged([chain(lineage.used(BONES, HELD_OUT, LABEL)), lineage.used(SCORED, HELD_OUT, LABEL)])
    with pytest.raises(ForbiddenScore, match=r"scored: study_fracture-04F/fold0-seed1 <- label of s1 \(and 1 more\)"):
        lineage.refuse_exposed("labels", exposure, HELD_OUT)


def test_predictions_with_another_runs_weights_are_as_near_to_what_these_have_seen():
    weights = lineage.used("bbox-01B/fold1-seed1", ["s1"], SEGMENTATION)
    found = lineage.of_weights("bbox-01B/fold0-seed1", weights)
    with pytest.raises(ForbiddenScore, match="<- weights bbox-01B/fold1-seed1 <- segmentation of s1") as error:
        lineage.refuse_exposed("segmentations", found, HELD_OUT)
    assert error.value.exit_status == 1


def test_a_variant_that_holds_out_nothing_that_is_known_is_named_and_stops_no_other_score(tiny_cache, tmp_path):
    cache = Cache(tiny_cache)
    own = cache.index.loc[cache.index["segmentation_digest"].isna(), "id"].iloc[0]
    run_dir = vertebrae_run(tmp_path, cache, 0, lineage.used(BONES, [], LABEL))
    predicted = read_table(run_dir / "predictions.parquet")
    write_table(run_dir / "predictions.parquet", predicted.head(1).assign(id=own), "test", {"run": "key0"})
    found = score_runs(cache, (run_dir,), tmp_path / "none")
    assert found.unknown == ["vertebrae 02G"] and not found.rows and not found.refused


def test_a_box_made_from_a_studys_own_label_forbids_that_studys_score_alone():
    boxes = lineage.own_labels("study_boxes", ["s1"])
    exposure = lineage.merged([lineage.used(SCORED, TRAIN, LABEL), lineage.into_rows(SCORED, boxes, HELD_OUT)])
    lineage.refuse_exposed("labels", exposure, ["s2"])
    with pytest.raises(ForbiddenScore, match=f"{SCORED} row s1 <- study_boxes row s1 <- label of s1"):
        lineage.refuse_exposed("labels", exposure, HELD_OUT)


def test_stages_1_and_2_may_not_have_trained_on_the_segmentation_but_may_have_met_it_upstream():
    boxes = lineage.of_predictions(
        "study_boxes", [(lineage.used("bbox-01B/fold1-seed1", HELD_OUT, SEGMENTATION), TRAIN)]
    )
    exposure = lineage.merged(
        [lineage.used(BONES, TRAIN, SEGMENTATION), lineage.into_weights(BONES, boxes, rows=TRAIN)]
    )
    lineage.refuse_exposed("segmentations", exposure, HELD_OUT)
    met = lineage.other_segmentations({BONES: (exposure, HELD_OUT)})
    assert met["study"].tolist() == HELD_OUT
    way = f"{BONES} <- study_boxes row t1 <- bbox-01B/fold1-seed1"
    assert met["way"].iloc[0] == way
    line = f"vertebrae-02G: its inputs have seen the segmentation of 2 scored studies, as {way} <- segmentation of s1"
    assert exposure_report(met) == line and exposure_report(met[:0]) == ""
    with pytest.raises(ForbiddenScore, match=f"{BONES} <- segmentation of t2"):
        lineage.refuse_exposed("segmentations", exposure, ["s1", "t2"])


def test_rows_are_exposed_to_the_runs_that_predicted_them_only():
    runs = [
        (lineage.used("bbox-01B/fold0-seed1", ["b"], SEGMENTATION), ["a"]),
        (lineage.used("bbox-01B/fold1-seed1", ["a"], SEGMENTATION), ["b"]),
        (lineage.used("bbox-01B/fold1-seed2", ["a"], SEGMENTATION), ["b"]),
    ]
    table = lineage.of_predictions("study_boxes", runs)
    assert [pair[:2] for pair in pairs_of(table)] == [("a", "b"), ("b", "a")]
    assert table == lineage.of_predictions("study_boxes", runs[::-1])


def test_a_lineage_belongs_to_the_content_it_was_kept_for(tmp_path):
    table, path = pd.DataFrame({"id": ["a"], "C1": [0.5]}), tmp_path / "pseudo_labels.parquet"
    lineage.keep_for_table(path, content_digest(table), lineage.own_labels("pseudo_labels", ["a"]))
    write_table(path, table, "test", {})
    assert [pair.way for pair in pairs_of(lineage.kept_for_table(path))] == ["pseudo_labels row a"]
    write_table(path, table.assign(C1=0.6), "another", {})
    assert lineage.kept_for_table(path) is None


def vertebrae_run(out, cache, fold: int, exposure: Exposure):
    """A run's folder as far as tables read it."""
    run_dir = out / f"vertebrae-02G/fold{fold}-seed1"
    held_out = cache.labels.loc[cache.labels["fold"] == fold, "id"]
    rows = [(id, z, 1) for id in held_out for z in range(cache.record(id).slices)]
    table = pd.DataFrame(rows, columns=["id", "z_index", "windows"]).assign(**dict.fromkeys(LEVELS, 0.5))
    write_table(run_dir / "predictions.parquet", table, "test", {"run": f"key{fold}", "split": "held_out"})
    write_table(run_dir / EXPOSURE_FILE, to_table(exposure), "test", {"run": f"key{fold}"})
    return run_dir


def test_a_planted_leak_stops_a_run_before_it_trains(tiny_cache, tiny_settings, true_boxes, tmp_path):
    cache = Cache(tiny_cache)
    folds = cache.labels.set_index("id")["fold"]
    victim, other = folds.index[folds == 0][0], sorted(folds.index[folds == 1])[0]
    run_of_1 = "vertebrae-02G/fold1-seed1"
    honest = vertebrae_run(tmp_path, cache, 0, lineage.used("vertebrae-02G/fold0-seed1", [other], SEGMENTATION))
    seen = lineage.used(run_of_1, [victim], SEGMENTATION)
    words = ["stage=slice_fracture", "fold=0", f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}"]
    words += [f"boxes={true_boxes}", f"pseudo={tmp_path / 'tables/pseudo_labels.parquet'}"]

    def exposure_of(planted: Exposure) -> pd.DataFrame:
        runs = [honest, vertebrae_run(tmp_path, cache, 1, lineage.merged([seen, planted]))]
        make.make("vertebra_ratios", tmp_path, cache, runs)
        make.make("pseudo_labels", tmp_path, cache)
        settings = load(words)
        found = of_run(settings, Inputs(settings))
        check_scorable(settings, Inputs(settings), found)
        return found

    found = exposure_of(lineage.used(run_of_1, [], LABEL))
    assert lineage.seen_by_weights(found, LABEL) == set(folds.index[folds == 1])
    assert [pair.way for pair in lineage.unknown_inputs(found)] == [
        "slice_fracture-04F/fold0-seed1 <- boxes=study_boxes.parquet"
    ]
    (tmp_path / "imagenet.pth").touch()
    words.append(f"model.weights_file={tmp_path / 'imagenet.pth'}")
    started = exposure_of(lineage.used(run_of_1, [], LABEL))
    assert "slice_fracture-04F/fold0-seed1 <- model.weights_file=imagenet.pth" in {group.way for group in started}
    words.pop()
    with pytest.raises(ForbiddenScore) as error:
        exposure_of(lineage.used(run_of_1, [victim], LABEL))
    way = f"pseudo_labels row {other} <- vertebra_ratios row {other} <- {run_of_1} <- label of {victim}"
    assert f"study {victim}: may not be scored: slice_fracture-04F/fold0-seed1 <- {way}" in str(error.value)
    with pytest.raises(ForbiddenScore):
        run(load(words))
    assert not (tmp_path / "slice_fracture-04F").exists()
