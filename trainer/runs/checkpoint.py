"""Checkpoints, which hold all that is needed to resume from an optimiser step, and the final weights.

Files hold tensors and numbers, no pickles: write access to a run's folder must not allow to run code. Accelerate's own
checkpoints are not used: they contain pickles, their names depend on the number of processes, and of tensors that share a
buffer, such as an LSTM's on a GPU, only the first is saved.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from cache_schema.documents import canonical_json, digest_of, sync, write_whole
from trainer.models import load_strictly
from trainer.runs import random_states
from trainer.runs.damaged import Damaged, set_aside
from trainer.runs.file_names import CHECKPOINT, CHECKPOINT_NEW, CHECKPOINT_OLD, MODEL_FILE, POSITION
from trainer.runs.weights import DIGEST, reading, require_whole, sealed, weights_metadata

OPTIMISER = "optimizer.safetensors"
STEP = "step"
"""a parameter's entry in the optimiser's state that keeps its own device"""


def save(accelerator: Accelerator, model: nn.Module, run_dir: Path, step: int, key: str) -> None:
    """Writes model, optimiser, gradient scaler, RNG states and step into a new folder, then renames it. Call on all processes;
    the main one alone writes."""
    new, now, old = (run_dir / name for name in (CHECKPOINT_NEW, CHECKPOINT, CHECKPOINT_OLD))
    states = gather_object([random_states.states()])
    if accelerator.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_weights(accelerator.unwrap_model(model), new, {})
        files = [new / MODEL_FILE]
        for index, state in enumerate(states):
            files.append(_of_process(new, index))
            _write(files[-1], *state)
        if optimiser := _optimiser_state(accelerator):  # none before its first step
            files.append(new / OPTIMISER)
            _write(files[-1], optimiser, {})
        held = {"step": step, "key": key, "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
        held["files"] = {path.name: weights_metadata(path)[DIGEST] for path in files}
        write_whole(new / POSITION, canonical_json(held | {DIGEST: digest_of(held)}))
        if now.exists():  # else `old` is the last complete one
            shutil.rmtree(old, ignore_errors=True)
            now.rename(old)
        new.rename(now)
        sync(run_dir)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, model: nn.Module, run_dir: Path, key: str) -> int:
    """Loads the main process's last complete checkpoint and returns its optimiser step; 0 if there is none of this run.

    Call on all processes. Raises Damaged on one that sees other files than the main one.
    """
    (found,) = broadcast_object_list([_found(run_dir, key) if accelerator.is_main_process else None])
    folder, held = found
    if folder is None:
        return 0
    own = _of_process(folder, accelerator.process_index)
    names = {name for name in (MODEL_FILE, OPTIMISER, own.name) if name in held["files"]}
    if not accelerator.is_main_process and not all(_is(folder / name, held["files"][name]) for name in names):
        raise Damaged("is not the checkpoint that the main process sees", where=folder, do="start again")
    load_weights(accelerator.unwrap_model(model), folder / MODEL_FILE)
    if OPTIMISER in names:
        _set_optimiser_state(accelerator, read_tensors(folder / OPTIMISER))
    if accelerator.scaler is not None and held["scaler"]:
        accelerator.scaler.load_state_dict(held["scaler"])
    if own.name in names:  # else there are now more processes
        random_states.restore(read_tensors(own), weights_metadata(own))
    accelerator.step = 0  # micro-batches since the last optimiser step
    return held["step"]


def position(run_dir: Path, key: str) -> int:
    """The optimiser step from which `restore` would resume."""
    return _found(run_dir, key)[1]["step"]


def set_damaged_aside(run_dir: Path) -> Iterator[str]:
    """Renames checkpoints that are damaged or of an older format; yields a message for each."""
    for folder in (run_dir / CHECKPOINT, run_dir / CHECKPOINT_OLD):
        try:
            _held_by(folder)
        except Damaged as error:
            yield f"{error}; it is now {set_aside(folder)}"


def save_weights(model: nn.Module, run_dir: Path, metadata: dict[str, str]) -> None:
    """Writes model.safetensors with a digest of its content, atomically."""
    _write(run_dir / MODEL_FILE, model.state_dict(), metadata)


def load_weights(model: nn.Module, path: Path) -> None:
    """Strict: all tensors must be there, and no others. Raises UsageError with the first that differs."""
    load_strictly(model, read_tensors(path), "this variant", path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against its digest. Raises Damaged."""
    require_whole(path)
    with reading(path):
        return load_file(str(path))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, sealed(lambda metadata: serialised(state, metadata), metadata))


def _of_process(folder: Path, index: int) -> Path:
    return folder / f"random_states_{index}.safetensors"


def _found(run_dir: Path, key: str) -> tuple[Path | None, dict[str, Any]]:
    """The last complete checkpoint of this run and its position.json; (None, step 0) if there is none."""
    for folder in (run_dir / CHECKPOINT, run_dir / CHECKPOINT_OLD):
        with suppress(Damaged):
            held = _held_by(folder)
            if held is not None and held["key"] == key:
                return folder, held
    return None, {"step": 0}


def _held_by(folder: Path) -> dict[str, Any] | None:
    """position.json; None if there is no checkpoint. Raises Damaged if any file is not as it was written."""
    if not folder.is_dir():
        return None
    try:
        held = json.loads((folder / POSITION).read_bytes())
        if held.pop(DIGEST) != digest_of(held) or not _is_position(held):
            raise ValueError
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise Damaged("is not a complete checkpoint of this version", where=folder) from None
    for name, digest in held["files"].items():
        if not _is(folder / name, digest):
            raise Damaged(f"is damaged: {name} is not the file that was written", where=folder)
    return held


def _is_position(held: dict[str, Any]) -> bool:
    kinds = {"step": int, "key": str, "scaler": dict, "files": dict}
    if not all(isinstance(held.get(name), kind) for name, kind in kinds.items()):
        return False
    return held["step"] >= 0 and all(
        Path(name).name == name and isinstance(of, str) for name, of in held["files"].items()
    )


def _is(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    try:
        return require_whole(path) == digest
    except Damaged:
        return False


def _optimiser_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """`<index of the parameter>.<name>` -> tensor. Hyperparameters are not saved: they follow from settings and step."""
    return {
        f"{place}.{name}": torch.as_tensor(value)
        for optimiser in accelerator._optimizers
        for place, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def _set_optimiser_state(accelerator: Accelerator, tensors: dict[str, Tensor]) -> None:
    for optimiser in accelerator._optimizers:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            place, _, name = key.partition(".")
            like = parameters[int(place)]
            if name != STEP:  # the memory format of its parameter keeps the steps fast
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            state.setdefault(int(place), {})[name] = value
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
