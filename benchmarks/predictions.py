"""What benchmarks of predictions share: packs of models made here, and the time until a command has kept an answer."""

import contextlib
import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.made_up_runs import write_run
from benchmarks.phantoms import write_inputs
from cache_schema import Cache
from trainer import train
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.trained.models import BOXES, SLICES, STUDIES
from trainer.trained.of_runs import models_of_runs
from trainer.trained.pack_content import write_pack

POLL_SECONDS = 0.01


def packed_models(folder: Path, settings: Mapping[str, Any], make: Callable[..., Path] = train) -> Path:
    """A file with one model of each stage that prediction uses, made on four small phantoms.

    settings: of every run, with dotted names. make: makes a finished run of settings, and returns its folder.
    """
    given = dict(word.split("=", 1) for word in write_inputs(folder / "inputs", count=4, slices=30))
    pseudo = given.pop("pseudo")
    common = {**given, "out": folder / "runs", "tracker": "none", **settings}
    with contextlib.redirect_stdout(io.StringIO()):
        make(stage=BOXES, **common)
        backbone = make(stage=SLICES, pseudo=pseudo, **common)
        make(stage=STUDIES, backbone=backbone, **common)
    file = folder / "models.cspine"
    write_pack(models_of_runs(folder / "runs"), file)
    return file


def untrained(**settings: Any) -> Path:
    """A run's folder with the weights that its training would begin with.

    The time of an answer does not depend on what was learned, but for the box, which decides how many slices are looked at.
    """
    import torch

    loaded = load(f"{key}={value}" for key, value in settings.items())
    torch.manual_seed(loaded.seed)
    cache = Cache(loaded.cache)
    network = loaded.facts(loaded, Inputs(loaded, cache)).model()
    write_run(loaded, cache, {name: tensor.numpy() for name, tensor in network.state_dict().items()})
    return loaded.run_dir


def seconds_to_an_answer(command: Sequence[object], out: Path) -> float:
    """From the start of a command that predicts until the first study's answer is kept in `out`. Waits for the command's end.

    Removes the answers of earlier commands from `out`. Raises SystemExit, with what the command said, if it fails.
    """
    for path in out.glob("answers/*"):
        path.unlink()
    words = [str(word) for word in command]
    began, seconds = time.monotonic(), None
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        ended = False
        while seconds is None and not ended:
            ended = process.poll() is not None  # before it looks: the answer may come in between
            if any(out.glob("answers/*.json")):
                seconds = time.monotonic() - began
            else:
                time.sleep(POLL_SECONDS)
        if process.wait() or seconds is None:
            errors.seek(0)
            raise SystemExit(f"{' '.join(words)} ended with status {process.returncode}: {errors.read().strip()}")
    return seconds
