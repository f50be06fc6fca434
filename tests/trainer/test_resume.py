"""A run that is killed and started again ends as if it had never been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file
from trainings import same_weights

from trainer import train
from trainer.loop import Run
from trainer.runs import checkpoint
from trainer.runs.inputs import Inputs
from trainer.runs.metrics_log import MetricsLog
from trainer.settings.layers import load

ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_stopped_at_a_step_ends_with_the_same_weights_bit_for_bit(
    stop, tiny_cache, tiny_settings, true_boxes, tmp_path, monkeypatch, capsys
):
    common = dict(
        stage="vertebrae", variant="04A", cache=tiny_cache, config=tiny_settings, boxes=true_boxes, deterministic="true"
    )
    whole = train(**common, out=tmp_path / "whole")

    steps = Run.step
    with monkeypatch.context() as patched:

        def stop_there(self, model, optimiser, batches, passes, step, last):
            if step == stop:
                raise Stopped
            return steps(self, model, optimiser, batches, passes, step, last)

        patched.setattr(Run, "step", stop_there)
        with pytest.raises(Stopped):
            train(**common, out=tmp_path / "stopped")
    with (tmp_path / "stopped/vertebrae-04A/fold0-seed1/metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": stop + 1, "loss": 0.0}) + '\n{"step": 9, "lo'
        )  # logged after the last checkpoint
    unfinished = tmp_path / "stopped/vertebrae-04A/fold0-seed1/.model.safetensors.12ab.part"
    unfinished.write_bytes(b"of a process that was killed over it")
    resumed = train(**common, out=tmp_path / "stopped")
    assert f"resuming at step {stop} of 4" in capsys.readouterr().out and not unfinished.exists()

    expected, found = (load_file(run / "model.safetensors") for run in (whole, resumed))
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)
    assert (whole / "predictions.parquet").read_bytes() == (resumed / "predictions.parquet").read_bytes()
    logged, expected = (MetricsLog(run).lines() for run in (resumed, whole))
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 4] and logged[-1] == expected[-1] and "score" in logged[-1]
    assert [line.get("loss") for line in logged] == [line.get("loss") for line in expected]


def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_weights(tiny_cache, tiny_settings, tmp_path):
    words = ["stage=bbox", f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}", "train.epochs=4"]
    words.append("deterministic=true")
    run = load(words).run_dir
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen(
            [sys.executable, ROOT / "trainer/run.py", *words],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while not (run / "checkpoint/position.json").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (run / "checkpoint/position.json").exists(), (tmp_path / "log").read_text()
    assert not (run / "model.safetensors").exists()
    given = dict(word.split("=", 1) for word in words)
    train(**given)
    whole = train(**{**given, "out": tmp_path / "whole"})
    assert (run / "predictions.parquet").is_file() and same_weights(whole, run)
    assert MetricsLog(run).lines()[-1] == MetricsLog(whole).lines()[-1]


def test_a_checkpoint_of_other_settings_is_not_used(tiny_cache, tiny_settings, tmp_path):
    words = [f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}", "stage=bbox"]
    settings = load(words)
    run = Run(settings, Inputs(settings), "one key")
    model = run.accelerator.prepare(run.stage.model())
    checkpoint.save(run.accelerator, model, settings.run_dir, 7, "one key")
    assert checkpoint.restore(run.accelerator, model, settings.run_dir, "one key") == 7
    assert checkpoint.restore(run.accelerator, model, settings.run_dir, "another key") == 0


def test_weights_that_share_a_buffer_are_all_kept_in_a_checkpoint(tmp_path):
    """As those of an LSTM do on a GPU."""
    accelerator, lstm = Accelerator(cpu=True), torch.nn.LSTM(3, 3)
    buffer = torch.cat([parameter.detach().flatten() for parameter in lstm.parameters()])
    first = 0
    for parameter in lstm.parameters():
        parameter.data = buffer[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()
    model = accelerator.prepare(lstm)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(accelerator, model, tmp_path, 1, "key")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert checkpoint.restore(accelerator, model, tmp_path, "key") == 1
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_runs_of_other_precisions_follow_each_other_in_one_process(tiny_cache, tiny_settings, tmp_path):
    common = dict(stage="bbox", cache=tiny_cache, config=tiny_settings, **{"train.batch": 56, "data.size": 32})
    losses = []
    for number, precision in enumerate(["bf16", "no"]):
        run = train(**common, out=tmp_path / str(number), **{"train.precision": precision})
        losses.append([line["loss"] for line in MetricsLog(run).lines() if "loss" in line])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_score_that_is_made_again_stands_once(tmp_path):
    journal = MetricsLog(tmp_path)
    journal.rewind(0)
    journal.append(1, {"loss": 0.5})
    for value in (0.1, 0.2):
        journal.score(1, [{"value": value}])
    assert journal.lines() == [{"step": 1, "loss": 0.5}, {"step": 1, "score": {"value": 0.2}}]
