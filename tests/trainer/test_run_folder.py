"""What lies in a run's folder already: nothing of another run, and nothing that a user put there, is written over."""

import json

import pandas as pd
import pytest

from cache_schema.errors import UsageError
from cache_schema.tables import write_table
from trainer import train
from trainer.plan.__main__ import main as plan
from trainer.runs.run_folder import make_room
from trainer.settings.layers import load

OWN, OTHERS = "a" * 64, "b" * 64
FILES = ["config.yaml", "model.safetensors", "predictions.parquet", "exposure.parquet", "metrics.jsonl"]


def put(folder, what: str, key: str | None) -> None:
    """A run's checkpoint, or its predictions, in a folder without settings and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if what.startswith("checkpoint"):
        (folder / what).mkdir()
        (folder / what / "position.json").write_text(json.dumps({"step": 4, "key": key}))
    else:
        write_table(folder / what, pd.DataFrame({"id": ["a"]}), "a run", {"run": key} if key else {})


@pytest.mark.parametrize("what", ["checkpoint", "checkpoint.old", "predictions.parquet", "predictions-all.parquet"])
@pytest.mark.parametrize("key", [OTHERS, None], ids=["of another run", "without a key"])
def test_what_another_run_left_is_set_aside_whole(what, key, tmp_path):
    put(tmp_path / "fold0-seed1", what, key)
    lines = list(make_room(tmp_path / "fold0-seed1", OWN))
    aside = tmp_path / f".stale-fold0-seed1-{(key or 'unknown')[:8]}"
    assert (aside / what).exists() and not (tmp_path / "fold0-seed1").exists()
    assert lines == [f"{tmp_path / 'fold0-seed1'} held a run of other settings or inputs; it is now {aside}"]


@pytest.mark.parametrize("what", ["checkpoint", "predictions.parquet"])
def test_what_the_run_itself_left_stays(what, tmp_path):
    put(tmp_path, what, OWN)
    assert not list(make_room(tmp_path, OWN)) and (tmp_path / what).exists()


def test_a_checkpoint_that_says_nothing_is_not_taken_for_another_run_s(tmp_path):
    put(tmp_path, "checkpoint", OTHERS)
    (tmp_path / "checkpoint/position.json").write_text("[")
    assert not list(make_room(tmp_path, OWN)) and (tmp_path / "checkpoint").is_dir()


def test_a_run_begun_over_another_s_checkpoint_begins_anew_beside_it(tiny_cache, tiny_settings, tmp_path):
    run_dir = tmp_path / "bbox-01B/fold0-seed1"
    put(run_dir, "checkpoint", OTHERS)
    assert train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings, **{"train.epochs": 1}) == run_dir
    kept = run_dir.with_name(f".stale-fold0-seed1-{OTHERS[:8]}") / "checkpoint/position.json"
    assert json.loads(kept.read_text())["key"] == OTHERS and (run_dir / "model.safetensors").is_file()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_at_the_path_of_an_output_file_is_reported_before_anything_is_trained(
    name, tiny_cache, tiny_settings, tmp_path
):
    run_dir = tmp_path / "bbox-01B/fold0-seed1"
    (run_dir / name / "kept").mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{name}: is a folder; expected a file; move it away"):
        train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings)
    assert sorted(path.name for path in run_dir.iterdir()) == [name] and (run_dir / name / "kept").is_dir()


@pytest.mark.parametrize("name", ["study_boxes.parquet", "study_boxes.exposure.parquet", "scores.json"])
def test_a_folder_in_the_place_of_a_table_is_told_before_anything_is_trained(name, tiny_cache, tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text("runs: [{stage: bbox}]\n")
    (tmp_path / "runs/tables" / name).mkdir(parents=True)
    assert plan([str(tmp_path / "plan.yaml"), f"cache={tiny_cache}", f"out={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert f"{name}: is a folder" in error and error.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tables"]


def test_a_run_records_where_its_inputs_lie_by_no_link(tiny_cache, tmp_path, monkeypatch):
    real = tmp_path / "real/runs"
    (real / "tables").mkdir(parents=True)
    (real / "tables/study_boxes.parquet").touch()
    (tmp_path / "linked").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    words = ["stage=vertebrae", "variant=04A", f"cache={tiny_cache}", "out=linked"]
    recorded = load([*words, "boxes=real/runs/tables/study_boxes.parquet"]).record()
    assert recorded["out"] == str(real) and recorded["boxes"] == str(real / "tables/study_boxes.parquet")
    assert load([*words, "boxes=cache"]).record()["boxes"] == "cache"
