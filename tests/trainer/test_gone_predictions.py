"""Predictions that are gone, are none, or were made otherwise: no table is made of what is left, and each is named."""

import shutil

import numpy as np
import pandas as pd
import pytest

from cache_schema import Cache, CacheWriter
from cache_schema.tables import read_table, table_meta, write_table
from trainer.plan.__main__ import main as plan_main
from trainer.tables.__main__ import main

RUN = "study_fracture-04F/fold1-seed1"


@pytest.fixture(scope="module")
def made(chain, tiny_cache, tmp_path_factory):
    """RUNS of all four stages over two folds, with every table and score."""
    runs = shutil.copytree(chain[0], tmp_path_factory.mktemp("gone") / "runs")
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    return runs


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def tables_of(runs):
    return {path.name: path.read_bytes() for path in (runs / "tables").iterdir() if path.is_file()}


def as_pandas_writes(path):
    pd.DataFrame(read_table(path)).to_parquet(path)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), as_pandas_writes], ids=["gone", "another's"])
def test_a_finished_run_without_predictions_of_its_own_is_named_and_nothing_is_made_of_the_rest(
    spoil, runs, tiny_cache, capfd
):
    before = tables_of(runs)
    spoil(runs / RUN / "predictions.parquet")
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    said = capfd.readouterr()
    assert f"{RUN}: stale, left out:" in said.out and "study_predictions cannot be made" in said.err
    assert tables_of(runs) == before


@pytest.mark.parametrize(
    ("column", "value"), [("C1", 29811.24), ("C2", np.nan), ("C3", -np.inf), ("C4", "high")], ids=str
)
def test_imported_predictions_that_are_no_probabilities_are_refused(column, value, runs, tiny_cache, capfd):
    before, path = tables_of(runs), runs / RUN / "predictions.parquet"
    table = read_table(path).astype({column: "object"})
    table.loc[0, column] = value
    table = table.astype({column: "str" if isinstance(value, str) else "float64"})
    shutil.rmtree(path.parent)
    write_table(path, table, "by hand", {"split": "held_out"})
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    said = capfd.readouterr()
    assert f"predictions.parquet {column} holds" in said.out and "Traceback" not in said.err
    assert tables_of(runs) == before


def test_predictions_of_other_windows_are_not_pooled(runs, tiny_cache, capfd):
    path = runs / "vertebrae-04A/fold1-seed1/predictions.parquet"
    meta = table_meta(path)
    write_table(path, read_table(path), meta["made_by"], meta["inputs"] | {"eval_stride": "1"})
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    assert "vertebrae-04A/fold1-seed1: stale, left out: another data.eval_stride" in capfd.readouterr().out


def test_a_run_of_a_fold_that_the_cache_does_not_have_blocks_no_table(runs, tiny_cache, capfd):
    shutil.copytree(runs / "bbox-01B/fold1-seed1", runs / "bbox-01B/fold7-seed1")
    before = tables_of(runs)
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    assert "bbox-01B/fold7-seed1: stale, left out" in capfd.readouterr().out and tables_of(runs) == before


def test_one_table_of_a_plan_is_not_made_from_stale_runs(runs, tiny_cache, tiny_settings, tmp_path, capfd):
    rows = "".join(
        f"  - {{stage: {stage}, variant: {variant}, folds: [0, 1]}}\n"
        for stage, variant in (
            ("bbox", "01B"),
            ("vertebrae", "04A"),
            ("slice_fracture", "04F"),
            ("study_fracture", "04F"),
        )
    )
    (tmp_path / "plan.yaml").write_text(f"config: {tiny_settings}\nruns:\n{rows}")
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    CacheWriter(cache).finish(labels=Cache(cache).labels.assign(fold=[0, 0, 0, 1, 1, 1]))
    before = tables_of(runs)
    for only in ("study_predictions", "scores"):
        assert plan_main([str(tmp_path / "plan.yaml"), f"cache={cache}", f"out={runs}", f"only={only}"]) == 1
        assert f"error: {only}: needs" in capfd.readouterr().err and tables_of(runs) == before


def test_other_thresholds_are_not_left_out_where_an_exposure_is_gone(runs, tiny_cache, capfd):
    before = tables_of(runs)
    (runs / "bbox-01B/fold1-seed1/exposure.parquet").unlink()
    words = [str(runs), f"cache={tiny_cache}"]
    assert main(words) == 1 and "study_boxes kept as made before" in capfd.readouterr().out
    assert main([*words, "tables.presence=0.9"]) == 1
    said = capfd.readouterr()
    assert "study_boxes cannot be made" in said.err and "kept as made" not in said.out
    assert tables_of(runs)["study_boxes.parquet"] == before["study_boxes.parquet"]
