"""A package with a fifth stage, one file, one network and one YAML, is installed: the commands work with it as with the others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).with_name("fifth_stage")
PLAN = """runs:
  - {stage: visible, folds: [0, 1], set: {train.threads: 1}}
  - {stage: visible, variant: 01B, folds: [0], set: {train.epochs: 1}}
"""
pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed packages with the toy in it."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "toy"
    shutil.copytree(PACKAGE, source)  # setuptools leaves its build folders there
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(install, check=True)
    return site


@pytest.fixture(scope="module")
def planned(site, tiny_cache, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("fifth")
    (folder / "plan.yaml").write_text(PLAN)
    done = command(site, "trainer.plan", str(folder / "plan.yaml"), f"cache={tiny_cache}", f"out={folder / 'runs'}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs", done.stdout


def command(site: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_plan_trains_predicts_and_scores_it(planned):
    runs, out = planned
    for run in ("visible-01A/fold0-seed1", "visible-01A/fold1-seed1", "visible-01B/fold0-seed1"):
        assert (runs / run / "model.safetensors").is_file()
        table = pd.read_parquet(runs / run / "predictions.parquet")
        assert list(table) == ["id", "z_index", "visible"] and table["visible"].between(0, 1).all()
    scores = pd.DataFrame(json.loads((runs / "tables/scores.json").read_text()))
    assert set(scores["stage"]) == {"visible"} and set(scores["metric"]) == {"log_loss"}
    assert scores.set_index("variant").loc["01A", "n"] == 4, "both folds' segmented studies"
    assert "visible" in out


def test_the_same_plan_has_nothing_more_to_do(planned, site, tiny_cache):
    runs, _ = planned
    again = command(site, "trainer.plan", str(runs.parent / "plan.yaml"), f"cache={tiny_cache}", f"out={runs}")
    assert again.returncode == 0 and "started" not in again.stdout


def test_the_plan_and_trainer_tables_make_its_table(planned, site, tiny_cache):
    runs, out = planned
    made = runs / "tables/visible_ranges.parquet"
    assert f"[visible_ranges] made: {made}" in out
    ranges = pd.read_parquet(made)
    assert list(ranges) == ["id", "z_from", "z_to"] and len(ranges) == 6 and (ranges["z_from"] < ranges["z_to"]).all()
    seen = pd.read_parquet(made.with_name("visible_ranges.exposure.parquet"))
    assert len(seen), "what its predictions have seen goes with it"
    kept, words = made.stat().st_mtime_ns, ("trainer.tables", str(runs), f"cache={tiny_cache}")
    again = command(site, *words)
    assert again.returncode == 0 and made.stat().st_mtime_ns == kept, again.stderr
    made.unlink()
    again = command(site, *words)
    assert again.returncode == 0 and "visible_ranges, scores in" in again.stdout, again.stderr
    assert pd.read_parquet(made).equals(ranges)


def test_a_new_version_of_its_recipe_makes_the_table_again(planned, site, tiny_cache, tmp_path):
    shutil.copytree(planned[0], tmp_path / "runs")
    shutil.copytree(site, tmp_path / "site")
    stage = tmp_path / "site/cspine_visible/stage.py"
    stage.write_text(stage.read_text().replace('version="1"', 'version="2"').replace(".max() + 1", ".max() + 2"))
    done = command(tmp_path / "site", "trainer.tables", str(tmp_path / "runs"), f"cache={tiny_cache}")
    assert done.returncode == 0, done.stderr
    before, after = (pd.read_parquet(out / "tables/visible_ranges.parquet") for out in (planned[0], tmp_path / "runs"))
    assert (after["z_to"] == before["z_to"] + 1).all()


def test_its_weights_predict_every_study(planned, site, tiny_cache):
    runs, _ = planned
    words = [
        f"cache={tiny_cache}",
        f"out={runs}",
        "mode=predict",
        "split=all",
        "stage=visible",
        "model.pretrained=false",
    ]
    done = command(site, "trainer.run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pd.read_parquet(runs / "visible-01A/fold0-seed1/predictions-all.parquet")["id"].nunique() == 6


def test_look_shows_its_targets(site, tiny_cache, tmp_path):
    done = command(site, "trainer.look", "stage=visible", f"cache={tiny_cache}", f"out={tmp_path}", "items=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("*.png"))


def test_a_mistyped_name_is_told_with_it_and_without_the_package_it_is_unknown(site, tiny_cache, tmp_path):
    words = [f"cache={tiny_cache}", f"out={tmp_path}"]
    assert "did you mean visible?" in command(site, "trainer.run", "stage=visibel", *words).stderr
    unknown = command(tmp_path, "trainer.run", "stage=visible", *words)
    assert unknown.returncode == 2 and "no stage visible" in unknown.stderr


def test_runs_of_a_stage_that_is_no_longer_installed_are_named(planned, tiny_cache, tmp_path):
    runs, _ = planned
    shutil.copytree(runs, tmp_path / "runs")
    done = command(tmp_path, "trainer.tables", str(tmp_path / "runs"), f"cache={tiny_cache}")
    assert "visible-01A/fold0-seed1: left out: no stage visible is installed" in done.stdout


def test_a_package_that_cannot_be_imported_is_told_in_one_line(site, tiny_cache, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site/cspine_visible/stage.py").write_text("import there_is_no_such_module\n")
    words = [f"cache={tiny_cache}", f"out={tmp_path / 'runs'}"]
    done = command(tmp_path / "site", "trainer.run", "stage=visible", *words)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "cannot be imported (ModuleNotFoundError" in done.stderr and "Traceback" not in done.stderr
