"""Trainings that are killed at random moments, as the command runs them, and what they end with."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from trainer.runs.metrics_log import MetricsLog
from trainer.settings.layers import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.phantoms import write_inputs  # noqa: E402

PATIENCE_SECONDS = 600
SMALL = "model.name=test_efficientnet_gn model.pretrained=false model.chunk=8 data.size=64 data.frames=12 data.stride=3 data.eval_stride=8"
FIXED = "deterministic=true tracker=none train.threads=1 train.checkpoint_minutes=0 train.log_every=1"
"""one thread, and a checkpoint after every step"""
EPOCHS = {"bbox": 2, "vertebrae": 10, "slice_fracture": 10, "study_fracture": 20}


@dataclass
class Killed:
    kills: int = 0
    too_late: int = 0
    """the training had ended by itself"""
    trainings: int = 0
    differing: int = 0
    """trainings whose weights are not those of the uninterrupted one, bit for bit"""
    logs_differing: int = 0
    """trainings that did not log each step once, with the loss of the uninterrupted one"""


def kill_all_stages(folder: Path, count: int, seed: int = 0) -> dict[str, Killed]:
    """`count` kills of each stage's training on small phantoms; stage 4 stands on stage 3's uninterrupted training."""
    inputs = write_inputs(folder / "inputs", count=6, slices=30)
    killed = {}
    for stage, epochs in EPOCHS.items():
        batch = 2 if stage == "study_fracture" else 4
        words = [f"stage={stage}", *inputs, *SMALL.split(), f"train.epochs={epochs}", f"train.batch={batch}"]
        words.append("micro_batch=2")
        words = [word for word in words if stage == "slice_fracture" or not word.startswith("pseudo=")]
        if stage == "vertebrae":
            words.append("variant=04A")
        if stage == "study_fracture":
            words += [f"backbone={folder / 'slice_fracture/whole/slice_fracture-04F/fold0-seed1'}"]
        killed[stage] = kill_trainings(words, folder / stage, count, seed)
    return killed


def make_models(folder: Path) -> Path:
    """RUNS with a tiny run of each stage that prediction uses."""
    inputs, out = write_inputs(folder / "inputs", count=6, slices=30), folder / "runs"
    for stage in ("bbox", "slice_fracture", "study_fracture"):
        words = [
            f"stage={stage}",
            *inputs,
            *SMALL.split(),
            *FIXED.split(),
            f"out={out}",
            "train.epochs=1",
            "train.batch=2",
        ]
        if stage == "study_fracture":
            words += [f"backbone={out / 'slice_fracture-04F/fold0-seed1'}"]
        _finish([word for word in words if stage == "slice_fracture" or not word.startswith("pseudo=")])
    return out


def kill_trainings(words: Sequence[str], folder: Path, count: int, seed: int = 0) -> Killed:
    """Train once without interruption; then kill the same training `count` times, going on each time, and compare.

    words: settings of the run, without out=. A third of the kills fall anywhere between start and end, the others
    about the time of a checkpoint. A training that ends is followed by another.
    """
    chance, killed = random.Random(seed), Killed()
    whole = [*words, *FIXED.split(), f"out={folder / 'whole'}"]
    began = time.monotonic()
    _finish(whole)
    lasts = time.monotonic() - began
    while killed.kills < count:
        broken = [*whole[:-1], f"out={folder / f'broken-{killed.trainings}'}"]
        run = load(broken).run_dir
        while killed.kills < count and not (run / "predictions.parquet").exists():
            process = _start(broken)
            if killed.kills % 3:
                _wait_for_a_checkpoint(run / "checkpoint/position.json", process)
                time.sleep(chance.uniform(0, 0.3))
            else:
                time.sleep(chance.uniform(0, lasts))
            killed.kills += process.poll() is None
            killed.too_late += process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.communicate()
        _finish(broken)
        killed.trainings += 1
        killed.differing += not same_weights(load(whole).run_dir, run)
        killed.logs_differing += _losses(load(whole).run_dir) != _losses(run)
    return killed


def same_weights(one: Path, other: Path) -> bool:
    """Whether two finished runs have the same tensors, bit for bit."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def _losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in MetricsLog(run).lines() if "loss" in line]


def _start(words: Sequence[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(ROOT / "trainer/run.py"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(words: Sequence[str]) -> None:
    process = _start(words)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode:
        raise SystemExit(f"a training ended with status {process.returncode}: {said[-2000:]}")


def _wait_for_a_checkpoint(path: Path, process: subprocess.Popen) -> None:
    """Until the process has begun to replace the checkpoint it found, or has ended."""
    before, deadline = _written(path), time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and _written(path) == before and time.monotonic() < deadline:
        time.sleep(0.005)


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
