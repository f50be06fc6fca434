"""calibration.json beside the tables of RUNS that it is of."""

import shutil
from functools import partial

import pandas as pd
import pytest

from cache_schema import LEVELS, TARGETS, Cache, CacheWriter
from cache_schema.tables import read_table, table_meta, write_table
from trainer.leakage import lineage
from trainer.leakage.groups import to_table
from trainer.look.__main__ import main as draw
from trainer.process.command import warn_once
from trainer.scores.calibration import Calibration, render
from trainer.tables.__main__ import main

RUN = "study_fracture-04F/fold{}-seed1"


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
