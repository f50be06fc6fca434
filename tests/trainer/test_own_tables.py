"""Tables that a user brings, or that lie in RUNS without the runs they came from: what is none, or of another cache, is one line."""

import shutil

import numpy as np
import pytest

from cache_schema import Cache, CacheWriter
from cache_schema.errors import UsageError
from cache_schema.tables import read_table, table_meta, write_table
from trainer.process.command import warn_once
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.settings.stage_registry import stage_class
from trainer.tables.__main__ import main


def inputs_of(cache, boxes, pseudo):
    words = ["stage=slice_fracture", f"cache={cache}", "out=RUNS", f"boxes={boxes}", f"pseudo={pseudo}"]
    return Inputs(load(words, must_exist=False))


@pytest.mark.parametrize("value", [-1, 0.5, np.inf, np.nan, "third", 10**6], ids=str)
def test_a_slice_that_there_cannot_be_is_refused(value, tiny_cache, true_boxes, pseudo, tmp_path):
    table = read_table(pseudo)
    table["z_index"] = [str(value)] * len(table) if isinstance(value, str) else table["z_index"].astype(float)
    if not isinstance(value, str):
        table.loc[0, "z_index"] = value
    write_table(tmp_path / "pseudo.parquet", table, "by hand", {})
    with pytest.raises(UsageError, match=r"pseudo=.*pseudo\.parquet: .*(z_index holds|beyond its 30)"):
        assert inputs_of(tiny_cache, true_boxes, tmp_path / "pseudo.parquet").pseudo


@pytest.mark.parametrize(("column", "value"), [("C1", np.inf), ("C2_frac", 29811.24), ("C3", -0.1)])
def test_a_ratio_that_is_none_is_refused(column, value, tiny_cache, true_boxes, pseudo, tmp_path):
    table = read_table(pseudo).astype({column: "float64"})
    table.loc[3, column] = value
    write_table(tmp_path / "pseudo.parquet", table, "by hand", {})
    with pytest.raises(UsageError, match=f"{column} holds {value}; expected z_index from 0 on, and values from 0 to 1"):
        assert inputs_of(tiny_cache, true_boxes, tmp_path / "pseudo.parquet").pseudo


def test_whole_numbers_may_be_held_as_fractions_and_labels_may_be_unknown(tiny_cache, true_boxes, pseudo, tmp_path):
    table = read_table(pseudo).astype({"z_index": "float64"})
    table.loc[3, "C1_frac"] = np.nan
    write_table(tmp_path / "pseudo.parquet", table, "by hand", {})
    given = inputs_of(tiny_cache, true_boxes, tmp_path / "pseudo.parquet").pseudo
    usual = inputs_of(tiny_cache, true_boxes, pseudo).pseudo
    assert given.keys() == usual.keys()
    assert sum(int((given[id] != usual[id]).sum()) for id in usual) == 1, "the null, which equals nothing"


def test_slices_without_pseudo_labels_are_counted(tiny_cache, true_boxes, pseudo, tmp_path, capsys):
    table = read_table(pseudo)
    (first, second) = sorted(set(table["id"]))[:2]
    table = table[(table["id"] != first) | (table["z_index"] != 7)]
    write_table(tmp_path / "pseudo.parquet", table, "by hand", {})
    inputs = inputs_of(tiny_cache, true_boxes, tmp_path / "pseudo.parquet")
    warn_once.cache_clear()
    assert stage_class("slice_fracture")(inputs.settings, inputs).train_items([first, second])
    line = f"1 studies lack pseudo labels of some slices, which the loss ignores, first {first}"
    assert capsys.readouterr().err.count(line) == 1


@pytest.mark.parametrize("value", [4.7, np.inf, "left"], ids=str)
def test_a_box_that_is_none_is_refused(value, tiny_cache, true_boxes, pseudo, tmp_path):
    table = read_table(true_boxes)
    table["x0"] = [value] * len(table)
    write_table(tmp_path / "boxes.parquet", table, "by hand", {})
    with pytest.raises(UsageError, match=f"boxes=.*x0 holds {value}; expected whole numbers"):
        assert inputs_of(tiny_cache, tmp_path / "boxes.parquet", pseudo).boxes is None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("study_boxes", "study_boxes reaches beyond the 30 slices of"),
        ("pseudo_labels", "pseudo_labels holds 1 slices that the cache does not"),
    ],
)
def test_tables_of_another_cache_are_not_exported(name, line, tiny_cache, true_boxes, pseudo, tmp_path, capfd):
    table = read_table(true_boxes if name == "study_boxes" else pseudo)
    table.loc[0, "z_to" if name == "study_boxes" else "z_index"] = 31
    write_table(tmp_path / f"tables/{name}.parquet", table, "by hand", {})
    assert main([str(tmp_path), f"cache={tiny_cache}", "export=rsna22"]) == 2
    assert f"error: {line}" in capfd.readouterr().err and not (tmp_path / "tables/rsna22").exists()


def test_pseudo_labels_of_other_labels_are_no_truth(chain, tiny_cache, tmp_path, capfd):
    runs, cache = shutil.copytree(chain[0], tmp_path / "runs"), shutil.copytree(tiny_cache, tmp_path / "cache")
    for folder in (*runs.glob("vertebrae-*"), *runs.glob("study_fracture-*")):
        shutil.rmtree(folder)
    assert table_meta(runs / "tables/pseudo_labels.parquet")["inputs"]["labels"]
    assert main([str(runs), f"cache={cache}"]) == 0
    assert "slice_fracture" in capfd.readouterr().out
    labels = Cache(cache).labels
    CacheWriter(cache).finish(labels=labels.assign(C1=1 - labels["C1"]))
    before = (runs / "tables/scores.json").read_bytes()
    assert main([str(runs), f"cache={cache}"]) == 1
    assert "pseudo_labels.parquet: is made from other labels, and its runs do not exist" in capfd.readouterr().err
    assert (runs / "tables/scores.json").read_bytes() == before
