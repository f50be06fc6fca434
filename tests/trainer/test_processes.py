"""Real launches: two CPU processes for every stage, and one line for a user's mistake however many processes there are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cache_schema.tables import read_table
from trainer import train
from trainer.settings.layers import load

ROOT = Path(__file__).resolve().parents[2]


def torchrun(words, **kwargs):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        *map(str, words),
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400, **kwargs
    )


EPOCHS = {"bbox": 1, "vertebrae": 5, "slice_fracture": 4, "study_fracture": 20}
"""at least 20 optimiser steps of 4 items each"""


@pytest.mark.check
def test_two_processes_train_and_predict_as_one_does(tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path, capfd):
    common = [f"cache={tiny_cache}", f"config={tiny_settings}", f"boxes={true_boxes}", "model.dropout=0"]
    common += ["train.batch=4", "train.micro_batch=4", "train.lr=3e-4", "train.checkpoint_minutes=0.005", "fold=all"]
    needs = {"vertebrae": ["variant=04A"], "slice_fracture": [f"pseudo={pseudo}"]}

    def training(stage, out):
        backbone = [f"backbone={out / 'slice_fracture-04F/foldall-seed1'}"] if stage == "study_fracture" else []
        words = [f"stage={stage}", f"out={out}", *common, *needs.get(stage, []), *backbone]
        if stage == "slice_fracture":  # two passes a step, whose counts differ between the processes
            words.append(f"train.micro_batch={1 if out.name == 'two' else 2}")
        return once([*words, f"train.epochs={EPOCHS[stage]}"])

    def prediction(stage, out):
        words = training(stage, tmp_path / "two")
        weights = load(words, must_exist=False).run_dir
        return once([*words, f"out={out}", "mode=predict", "split=all", f"weights={weights}"])

    both = [make(stage, tmp_path / "two") for stage in EPOCHS for make in (training, prediction)]
    (tmp_path / "stages.txt").write_text("\n".join(" ".join(words) for words in both))
    done = torchrun([ROOT / "tests/trainer/launch_each.py", tmp_path / "stages.txt"])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("2 process(es)") == 4
    for stage in EPOCHS:
        by_one = train(**as_keywords(training(stage, tmp_path / "one")))
        by_two = tmp_path / "two" / by_one.relative_to(tmp_path / "one")
        assert len(losses(by_one)) >= 20 and losses(by_two) == pytest.approx(losses(by_one), rel=1e-5), stage
        alone = train(**as_keywords(prediction(stage, tmp_path / "alone")))
        tables = [read_table(run / "predictions-all.parquet") for run in (by_two, alone)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-5, atol=1e-5)
    # what two processes had begun goes on in one
    stage, again = "vertebrae", tmp_path / "again"
    shutil.copytree(tmp_path / "two" / "vertebrae-04A", again / "vertebrae-04A")
    (again / "vertebrae-04A/foldall-seed1/model.safetensors").unlink()
    resumed = train(**as_keywords(training(stage, again)))
    assert "resuming at step" in capfd.readouterr().out
    assert losses(resumed) == pytest.approx(losses(tmp_path / "one/vertebrae-04A/foldall-seed1"), rel=1e-5)


def once(words):
    """The last word of each key."""
    return [f"{key}={value}" for key, value in as_keywords(words).items()]


def as_keywords(words):
    return dict(word.split("=", 1) for word in words)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_mistake_is_one_line_from_one_of_two_processes(tiny_cache, tmp_path):
    done = torchrun([ROOT / "trainer/run.py", "stage=bbox", f"cache={tiny_cache}", f"out={tmp_path}", "train.epoch=3"])
    assert done.returncode != 0
    assert done.stderr.count("error: no setting train.epoch; did you mean train.epochs?") == 1
