"""Predictions of another program, put where a run has its own."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from stale_runs import NAMES, scored, stale, tables_of

from cache_schema import LEVELS, Cache
from cache_schema.tables import read_table, write_table
from trainer.tables.__main__ import main


@pytest.fixture
def runs(tabled, tmp_path) -> Path:
    return shutil.copytree(tabled, tmp_path / "runs")


def imported(run_dir: Path, table: pd.DataFrame) -> None:
    """As somebody puts predictions of another program there."""
    write_table(run_dir / "predictions.parquet", table, "by hand", {"split": "held_out"})


def test_predictions_that_lack_slices_are_exported_and_their_score_alone_is_refused(runs, tiny_cache, capfd):
    """As those of the reference do, whose triplets leave a study's last slices out."""
    cache = Cache(tiny_cache)
    segmented = cache.index.set_index("id")["segmentation_digest"].notna()
    for fold in (0, 1):
        own = runs / f"vertebrae-04A/fold{fold}-seed1"
        table = read_table(own / "predictions.parquet")
        shutil.rmtree(own)
        lacking = min(id for id in set(table["id"]) if segmented[id])
        imported(own, table[(table["id"] != lacking) | (table["z_index"] < 29 - fold)])
    for name in NAMES[4:]:
        shutil.rmtree(runs / name)
    assert main([str(runs), f"cache={tiny_cache}", "export=rsna22"]) == 1
    said = capfd.readouterr()
    assert said.err.count("error: ") == 1 and "vertebrae 04A may not be scored: " in said.err
    assert "held-out rows are not predicted" in said.err and any(f"error: {id}: " in said.err for id in cache.ids)
    assert said.out.count(": not checked: ") == 2 and scored(runs) == {"bbox"}
    made = pd.read_csv(runs / "tables/rsna22/train_image_pseu_v04_crop.csv.gz")
    assert len(made) == 6 * 30 - 3 and [f"{level}_pred" for level in LEVELS] == list(made.columns[2:9])


def test_a_study_that_two_folds_hold_out_is_in_no_table(runs, tiny_cache, capfd):
    before = tables_of(runs)
    for fold in (0, 1):
        shutil.rmtree(runs / f"study_fracture-04F/fold{fold}-seed1")
        imported(runs / f"study_fracture-04F/fold{fold}-seed1", read_table(runs / "tables/study_predictions.parquet"))
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    said = capfd.readouterr()
    assert "6 studies are held out by two folds" in said.err and tables_of(runs) == before


def test_imported_predictions_without_a_column_are_one_line(runs, tiny_cache, capfd):
    table = read_table(runs / "bbox-01B/fold0-seed1/predictions.parquet")
    imported(runs / "bbox-01B/fold0-seed7", table.drop(columns="has_box"))
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    assert stale(capfd.readouterr().out) == {"bbox-01B/fold0-seed7": "predictions.parquet has no column has_box"}
