"""Studies whose box was not found: no stage that looks at boxes trains on them, and all of them are predicted."""

import shutil

import pandas as pd
import pytest

from cache_schema import Cache, CacheWriter
from cache_schema.errors import UsageError
from cache_schema.tables import read_table, write_table
from trainer import train
from trainer.leakage import exposure, lineage
from trainer.runs.identity import run_key
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load


@pytest.fixture
def some_without(tiny_cache, true_boxes, tmp_path):
    """(study_boxes, the study of fold 1 whose box was not found)."""
    boxes, labels = read_table(true_boxes), Cache(tiny_cache).labels.set_index("id")
    id = labels.index[labels["fold"] == 1][0]
    record = Cache(tiny_cache).record(id)
    whole = [0, 0, record.columns, record.rows, 0, record.slices, "full_frame"]
    boxes.loc[boxes["id"] == id, ["x0", "y0", "x1", "y1", "z_from", "z_to", "source"]] = whole
    write_table(tmp_path / "boxes.parquet", boxes, "a test", {})
    return tmp_path / "boxes.parquet", id


def inputs_of(stage, cache, boxes, out, fold=0):
    words = [f"stage={stage}", f"cache={cache}", f"out={out}", f"boxes={boxes}", f"fold={fold}"]
    return Inputs(load([*words, f"pseudo={boxes}", f"backbone={out}"], must_exist=False))


@pytest.mark.parametrize("stage", ["slice_fracture", "study_fracture"])
def test_they_are_left_out_of_training_and_of_exposure_and_are_predicted(stage, some_without, tiny_cache, tmp_path):
    boxes, id = some_without
    inputs = inputs_of(stage, tiny_cache, boxes, tmp_path)
    assert id not in inputs.train_ids() and len(inputs.train_ids()) == 2
    inputs.settings = inputs.settings.model_copy(update={"backbone": None})  # there is none
    seen = exposure.of_run(inputs.settings, inputs)
    assert id not in lineage.seen_at_all(seen) >= set(inputs.train_ids())
    other = inputs_of(stage, tiny_cache, boxes, tmp_path, fold=1)
    assert id in other.eval_ids() and id not in other.train_ids()


def test_stages_that_look_at_whole_slices_train_on_them(some_without, tiny_cache, tmp_path):
    boxes, id = some_without
    for stage in ("bbox", "vertebrae"):
        assert id in inputs_of(stage, tiny_cache, boxes, tmp_path).train_ids()


def test_a_box_that_is_found_as_large_as_the_study_counts_by_its_source(some_without, tiny_cache, tmp_path):
    boxes, id = some_without
    table = read_table(boxes)
    before = key_of(inputs_of("study_fracture", tiny_cache, boxes, tmp_path))
    write_table(boxes, table.assign(source="model"), "a test", {})
    found = inputs_of("study_fracture", tiny_cache, boxes, tmp_path)
    assert id in found.train_ids() and key_of(found) != before
    write_table(boxes, table.drop(columns="source"), "a test", {})
    assert inputs_of("study_fracture", tiny_cache, boxes, tmp_path).without_box >= {id}


def key_of(inputs):
    """Without the backbone, which is not there."""
    inputs.settings = inputs.settings.model_copy(update={"backbone": None})
    return run_key(inputs.settings, inputs)


def test_boxes_of_the_cache_that_hold_a_whole_study_are_none(some_without, tiny_cache, tmp_path):
    boxes, id = some_without
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    CacheWriter(cache).set_boxes(read_table(boxes))
    assert id in inputs_of("study_fracture", cache, "cache", tmp_path).without_box


def test_a_run_says_how_many_it_leaves_out_and_refuses_to_train_on_none(
    some_without, tiny_cache, tiny_settings, pseudo, tmp_path, capfd
):
    boxes, id = some_without
    given = dict(cache=tiny_cache, out=tmp_path / "runs", config=tiny_settings, boxes=boxes, pseudo=pseudo)
    run = train(stage="slice_fracture", **given, **{"train.epochs": 1})
    assert f"1 studies without a box are left out of training, first {id}" in capfd.readouterr().out
    assert len(pd.read_parquet(run / "predictions.parquet")["id"].unique()) == 3
    write_table(boxes, read_table(boxes).assign(source="full_frame"), "a test", {})
    with pytest.raises(UsageError, match="no training study has a box"):
        train(stage="slice_fracture", seed=2, **given)
