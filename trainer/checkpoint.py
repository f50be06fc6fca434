"""Checkpoints: everything needed to go on from an optimiser step, replaced as one folder; and weights by themselves.

A checkpoint's model is written and read here, not by Accelerate: its own names depend on the number of processes, and of
tensors that share one buffer, as an LSTM's do on a GPU, it keeps the first alone.
"""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import nn

from cache_schema.documents import sync, write_whole
from trainer.identity import CHECKPOINT, MODEL_FILE
from trainer.models import load_strictly

POSITION = "position.json"


def save(accelerator: Accelerator, model: nn.Module, run_dir: Path, step: int, key: str) -> None:
    """Model, optimiser, scaler, every process's RNG states and the step, written beside and renamed in. All processes call it."""
    new, now, old = (run_dir / name for name in (f"{CHECKPOINT}.new", CHECKPOINT, f"{CHECKPOINT}.old"))
    if accelerator.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    accelerator.wait_for_everyone()
    left_out = accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.save_state(str(new))
    left_out.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_weights(accelerator.unwrap_model(model), new, {})
        (new / POSITION).write_text(json.dumps({"step": step, "key": key}))
        for path in (*new.iterdir(), new):
            sync(path)
        if now.exists():  # else `old` is the last that is whole
            shutil.rmtree(old, ignore_errors=True)
            now.rename(old)
        new.rename(now)
        sync(run_dir)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, model: nn.Module, run_dir: Path, key: str) -> int:
    """The optimiser step to go on from: 0 without a checkpoint of this run."""
    folder, step = _found(run_dir, key)
    if folder is not None:
        load_weights(accelerator.unwrap_model(model), folder / MODEL_FILE)
        left_out = accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
        accelerator.load_state(str(folder))
        left_out.remove()
        accelerator.step = 0  # micro-batches since the last optimiser step, whatever the number of processes was
    return step


def position(run_dir: Path, key: str) -> int:
    """The optimiser step that `restore` would go on from."""
    return _found(run_dir, key)[1]


def _found(run_dir: Path, key: str) -> tuple[Path | None, int]:
    for folder in (run_dir / CHECKPOINT, run_dir / f"{CHECKPOINT}.old"):
        path = folder / POSITION
        if path.is_file():
            held = json.loads(path.read_text())
            if held["key"] == key:
                return folder, held["step"]
    return None, 0


def save_weights(model: nn.Module, run_dir: Path, metadata: dict[str, str]) -> None:
    """model.safetensors, float32, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(run_dir / MODEL_FILE, serialised(state, metadata))


def load_weights(model: nn.Module, path: Path) -> None:
    """Strictly: every tensor there, none too many. Raises UsageError naming the file and the first that differs."""
    load_strictly(model, load_file(str(path)), "this variant", path)
