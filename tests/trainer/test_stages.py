"""All four stages in one process, each fed by the ones before, as a user would run them."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.errors import UsageError
from cache_schema.tables import read_table, write_table
from trainer import train
from trainer.data.order import Evaluation
from trainer.loop import Run
from trainer.runs.identity import recorded_config
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.tables import make


def test_every_stage_predicts_exactly_what_its_fold_holds_out(chain, tiny_cache):
    out, runs = chain
    cache = Cache(tiny_cache)
    columns = {
        "bbox": ["id", "z_index", "x0", "y0", "x1", "y1", "has_box"],
        "vertebrae": ["id", "z_index", "windows", *LEVELS],
        "slice_fracture": ["id", "z_index", *LEVELS, *(f"{level}_frac" for level in LEVELS), "any_frac"],
        "study_fracture": ["id", *TARGETS],
    }
    for stage, folders in runs.items():
        for fold, folder in enumerate(folders):
            table = read_table(folder / "predictions.parquet")
            assert list(table.columns) == columns[stage]
            held_out = cache.labels.loc[cache.labels["fold"] == fold, "id"]
            assert set(table["id"]) == set(held_out)
            assert np.isfinite(table.drop(columns="id").to_numpy(float)).all()
    ratios = read_table(out / "tables/vertebra_ratios.parquet")
    slices = {id: cache.record(id).slices for id in cache.ids}
    assert {id: sorted(rows["z_index"]) for id, rows in ratios.groupby("id")} == {
        id: list(range(n)) for id, n in slices.items()
    }


def test_the_submission_has_eight_rows_for_every_study(chain, tiny_cache):
    submission = pd.read_csv(chain[0] / "tables/submission.csv")
    expected = [f"{id}_{target}" for id in Cache(tiny_cache).ids for target in TARGETS]
    assert submission["row_id"].tolist() == expected
    assert submission["fractured"].between(0, 1).all()


def test_scores_cover_all_stages_and_are_finite(chain, tiny_cache):
    out, runs = chain
    make.make("scores", out, Cache(tiny_cache), [folder for folders in runs.values() for folder in folders])
    scores = json.loads((out / "tables/scores.json").read_text())
    assert [row["stage"] for row in scores if row["split"] == "held_out" and ":" not in row["metric"]] == [
        "bbox",
        "vertebrae",
        "slice_fracture",
        "study_fracture",
    ]
    assert all(np.isfinite(row["value"]) and np.isfinite(row["baseline_value"]) for row in scores)
    assert "bbox" in make.summary(out)


def test_tables_are_made_once_and_again_only_when_their_inputs_change(chain, tiny_cache):
    out, runs = chain
    cache = Cache(tiny_cache)
    assert not make.make("study_boxes", out, cache, runs["bbox"])
    assert not make.make("pseudo_labels", out, cache, [])
    assert make.make("study_boxes", out, cache, runs["bbox"][:1])
    assert make.make("study_boxes", out, cache, runs["bbox"])


def test_a_finished_run_is_not_run_again(chain, tiny_cache, tiny_settings):
    out, runs = chain
    before = {path: path.stat().st_mtime_ns for path in runs["bbox"][0].iterdir()}
    train(stage="bbox", cache=tiny_cache, out=out, config=tiny_settings)
    assert {path: path.stat().st_mtime_ns for path in runs["bbox"][0].iterdir()} == before


def test_weights_say_what_they_were_made_from(chain, tiny_cache):
    with safe_open(chain[1]["study_fracture"][0] / "model.safetensors", framework="np") as file:
        meta = file.metadata()
    assert meta["pixel_hash"] == Cache(tiny_cache).pixel_hash and meta["fold"] == "0" and meta["seed"] == "1"
    assert {"boxes", "backbone", "labels", "studies"} <= set(json.loads(meta["inputs"]))
    assert json.loads(meta["config"])["train"]["batch"] == 2


def test_only_the_backbone_comes_from_stage_three(chain):
    stage3, stage4 = (
        safe_open(chain[1][stage][0] / "model.safetensors", framework="np")
        for stage in ("slice_fracture", "study_fracture")
    )
    for name in stage4.keys():  # noqa: SIM118
        same = name in stage3.keys() and np.array_equal(stage3.get_tensor(name), stage4.get_tensor(name))  # noqa: SIM118
        assert same == name.startswith("backbone."), name


@pytest.mark.parametrize("stage", ["bbox", "vertebrae", "slice_fracture", "study_fracture"])
def test_a_prediction_is_the_same_alone_in_any_batch_and_in_any_order(stage, chain, tiny_cache, tiny_settings):
    out, runs = chain
    tables = out / "tables"
    needs = {"vertebrae": ["variant=04A"], "slice_fracture": [f"pseudo={tables / 'pseudo_labels.parquet'}"]}.get(
        stage, []
    )
    if stage != "bbox":
        needs.append(f"boxes={tables / 'study_boxes.parquet'}")
    words = [f"stage={stage}", f"cache={tiny_cache}", f"out={out}", f"config={tiny_settings}", "mode=predict", *needs]
    settings = load(words)
    run = Run(settings, Inputs(settings), "")
    model = run.stage.model()
    from trainer.runs.checkpoint import load_weights

    load_weights(model, runs[stage][0] / "model.safetensors")
    written = read_table(runs[stage][0] / "predictions.parquet")
    ids = run.inputs.eval_ids()

    def predict(ids, batch):
        import torch

        items = run.stage.eval_items(ids)
        schedule = Evaluation(items, batch)
        loader = run.loader(schedule, batch, run.no_augmentation(), ids, limit=schedule.steps * batch)
        model.eval()
        with torch.no_grad():
            return run.stage.table(
                pd.concat(
                    [run.stage.rows(run.stage.forward(model, found), found) for found in loader], ignore_index=True
                )
            )

    whole = predict(ids[::-1], 5)
    alone = pd.concat([predict([id], 1) for id in ids], ignore_index=True)
    for table in (whole, alone):
        assert table["id"].tolist() == written["id"].tolist()
        assert np.allclose(
            table.drop(columns="id").to_numpy(float), written.drop(columns="id").to_numpy(float), atol=2e-4, rtol=1e-4
        )


def test_fold_all_trains_on_everything_and_scores_nothing(tiny_cache, tiny_settings, tmp_path):
    more = {"train.epochs": 2, "train.evaluate_every": 1}
    run = train(stage="bbox", fold="all", cache=tiny_cache, out=tmp_path, config=tiny_settings, **more)
    assert (run / "model.safetensors").is_file() and not (run / "predictions.parquet").exists()
    assert "score" not in (run / "metrics.jsonl").read_text()


def test_a_lost_prediction_is_made_again_without_training(chain, tiny_cache, tiny_settings):
    out, runs = chain
    weights, predictions = (runs["bbox"][1] / name for name in ("model.safetensors", "predictions.parquet"))
    before, table = weights.stat().st_mtime_ns, predictions.read_bytes()
    predictions.unlink()
    train(stage="bbox", fold=1, cache=tiny_cache, out=out, config=tiny_settings)
    assert weights.stat().st_mtime_ns == before and predictions.read_bytes() == table


def test_a_prediction_on_all_studies_leaves_the_held_out_one_alone(chain, tiny_cache, tiny_settings):
    out, runs = chain
    before = (runs["bbox"][0] / "predictions.parquet").read_bytes()
    train(stage="bbox", mode="predict", split="all", cache=tiny_cache, out=out, config=tiny_settings)
    assert (runs["bbox"][0] / "predictions.parquet").read_bytes() == before
    assert set(read_table(runs["bbox"][0] / "predictions-all.parquet")["id"]) == set(Cache(tiny_cache).ids)


def test_a_prediction_with_another_folder_s_weights_is_made_once(chain, tiny_cache, tiny_settings, tmp_path, capsys):
    _, runs = chain
    given = dict(stage="bbox", mode="predict", split="all", cache=tiny_cache, out=tmp_path, config=tiny_settings)
    made = train(**given, weights=runs["bbox"][0]) / "predictions-all.parquet"
    first = made.stat().st_mtime_ns
    train(**given, weights=runs["bbox"][0])
    assert made.stat().st_mtime_ns == first and "already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"weights": "bbox 1"}, "was trained with fold=1; expected fold=0"),
        ({"weights": "vertebrae 0"}, "was trained with stage=vertebrae; expected stage=bbox"),
        ({"weights": "bbox 0", "data.size": 96}, "was trained with data.size=64; expected data.size=96"),
        ({"weights": "bbox 0", "data.intensity": "fixed"}, "was trained with data.intensity=per_slice"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_what_differs(change, line, chain, tiny_cache, tiny_settings, tmp_path):
    stage, fold = change["weights"].split()
    given = {**change, "weights": chain[1][stage][int(fold)]}
    with pytest.raises(UsageError, match=line):
        train(stage="bbox", mode="predict", cache=tiny_cache, out=tmp_path, config=tiny_settings, **given)


@pytest.mark.parametrize(
    ("stage", "fold", "line"),
    [("slice_fracture", 1, "may not be scored.* <- backbone"), ("bbox", 0, "was trained with stage=bbox")],
)
def test_a_backbone_that_saw_what_the_fold_holds_out_is_refused(
    stage, fold, line, chain, tiny_cache, tiny_settings, tmp_path
):
    common = dict(cache=tiny_cache, out=tmp_path, config=tiny_settings, boxes=chain[0] / "tables/study_boxes.parquet")
    with pytest.raises(UsageError, match=line):
        train(stage="study_fracture", fold=0, backbone=chain[1][stage][fold], **common)


def test_weights_of_another_caches_pixels_are_refused(chain, tiny_cache, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Cache, "pixel_hash", "others")
    with pytest.raises(UsageError, match=r"was trained with pixel_hash=.*; expected pixel_hash=others"):
        train(
            stage="bbox",
            mode="predict",
            cache=tiny_cache,
            out=tmp_path,
            config=tiny_settings,
            weights=chain[1]["bbox"][0],
        )


def test_without_segmentations_stage_1_and_2_say_so(tiny_cache, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.runs.inputs.Inputs.train_ids", lambda self: [])
    with pytest.raises(UsageError, match="no study with a segmentation to train bbox on; build the cache with --segm"):
        train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings)


def test_settings_may_come_by_section_and_may_be_none(tiny_cache, tiny_settings, tmp_path):
    run = train(
        stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings, boxes=None, train={"epochs": 1, "batch": 8}
    )
    assert recorded_config(run)["train"]["batch"] == 8


def test_a_mistake_does_not_set_a_finished_run_aside(chain, tiny_cache, tiny_settings):
    out, runs = chain
    before = sorted(path.name for path in runs["bbox"][0].parent.iterdir())
    with pytest.raises(UsageError, match="did you mean test_efficientnet_gn"):
        train(stage="bbox", cache=tiny_cache, out=out, config=tiny_settings, **{"model.name": "test_efficientnet_gm"})
    assert sorted(path.name for path in runs["bbox"][0].parent.iterdir()) == before


def test_changed_settings_set_the_old_run_aside_instead_of_overwriting_it(tiny_cache, tiny_settings, tmp_path):
    common = dict(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings)
    first = (train(**common) / "model.safetensors").read_bytes()
    second = (train(**common, **{"train.lr": 1e-3}) / "model.safetensors").read_bytes()
    (aside,) = (tmp_path / "bbox-01B").glob(".stale-*")
    assert (aside / "model.safetensors").read_bytes() == first != second


@pytest.mark.parametrize("held_out", [False, True])
def test_a_study_without_a_box_is_named_before_anything_is_trained(
    held_out, tiny_cache, tiny_settings, true_boxes, tmp_path
):
    boxes, folds = read_table(true_boxes), Cache(tiny_cache).labels.set_index("id")["fold"]
    lost = boxes.loc[boxes["source"] == "segmentation", "id"].iloc[0]
    write_table(tmp_path / "boxes.parquet", boxes[boxes["id"] != lost], "cut", {})
    with pytest.raises(UsageError, match=f"1 studies have no box, first {lost}"):
        train(
            stage="vertebrae",
            variant="04A",
            cache=tiny_cache,
            out=tmp_path,
            config=tiny_settings,
            boxes=tmp_path / "boxes.parquet",
            fold=folds[lost] if held_out else "all",
            **{"train.batch": 2},
        )
    assert not (tmp_path / "vertebrae-04A").exists()


def test_weights_that_cannot_be_read_are_one_line(tiny_cache, tiny_settings, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="cannot be read as weights"):
        train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings, mode="predict", weights=tmp_path)
