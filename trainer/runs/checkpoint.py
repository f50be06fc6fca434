"""Checkpoints: everything needed to go on from an optimiser step, replaced as one folder; and weights by themselves.

Tensors and numbers, no pickles: whoever can write to a run's folder must not thereby run code. What is kept is written and
read here, not by Accelerate: it pickles, its names depend on the number of processes, and of tensors that share one buffer,
as an LSTM's do on a GPU, it keeps the first alone.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from cache_schema.documents import canonical_json, digest_of, sync, write_whole
from cache_schema.errors import CspineError
from trainer.models import load_strictly
from trainer.runs import random_states
from trainer.runs.damaged import Damaged, set_aside
from trainer.runs.files import CHECKPOINT, MODEL_FILE, POSITION
from trainer.runs.weights import DIGEST, TRAIN_AGAIN, require_whole, sealed, weights_metadata

OPTIMISER = "optimizer.safetensors"
STEP = "step"
"""of a parameter, in the optimiser's state; kept where the optimiser put it"""


def save(accelerator: Accelerator, model: nn.Module, run_dir: Path, step: int, key: str) -> None:
    """Model, optimiser, scaler, every process's RNG states and the step, written beside and renamed in. All processes call it."""
    new, now, old = (run_dir / name for name in (f"{CHECKPOINT}.new", CHECKPOINT, f"{CHECKPOINT}.old"))
    if accelerator.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    accelerator.wait_for_everyone()
    _write(_of_process(new, accelerator.process_index), *random_states.states())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_weights(accelerator.unwrap_model(model), new, {})
        files = [new / MODEL_FILE, *(_of_process(new, index) for index in range(accelerator.num_processes))]
        if state := _optimiser_state(accelerator):  # none before its first step
            _write(new / OPTIMISER, state, {})
            files.append(new / OPTIMISER)
        held = {"step": step, "key": key, "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
        held["files"] = {path.name: weights_metadata(path)[DIGEST] for path in files}
        write_whole(new / POSITION, canonical_json(held | {DIGEST: digest_of(held)}))
        if now.exists():  # else `old` is the last that is whole
            shutil.rmtree(old, ignore_errors=True)
            now.rename(old)
        new.rename(now)
        sync(run_dir)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, model: nn.Module, run_dir: Path, key: str) -> int:
    """The optimiser step to go on from: 0 without a whole checkpoint of this run."""
    folder, held = _found(run_dir, key)
    if folder is None:
        return 0
    load_weights(accelerator.unwrap_model(model), folder / MODEL_FILE)
    if OPTIMISER in held["files"]:
        _set_optimiser_state(accelerator, read_tensors(folder / OPTIMISER))
    if accelerator.scaler is not None and held["scaler"]:
        accelerator.scaler.load_state_dict(held["scaler"])
    own = _of_process(folder, accelerator.process_index)
    if own.name in held["files"]:  # else there are more processes than there were
        random_states.restore(read_tensors(own), weights_metadata(own))
    accelerator.step = 0  # micro-batches since the last optimiser step, whatever the number of processes was
    return held["step"]


def position(run_dir: Path, key: str) -> int:
    """The optimiser step that `restore` would go on from."""
    return _found(run_dir, key)[1]["step"]


def set_damaged_aside(run_dir: Path) -> Iterator[str]:
    """Renames checkpoints that are not whole, or of an older form; a line for each."""
    for folder in _folders(run_dir):
        try:
            _held_by(folder)
        except Damaged as error:
            yield f"{error}; it is now {set_aside(folder)}"


def save_weights(model: nn.Module, run_dir: Path, metadata: dict[str, str]) -> None:
    """model.safetensors, float32, with a digest of all it holds; whole or not at all."""
    _write(run_dir / MODEL_FILE, model.state_dict(), metadata)


def load_weights(model: nn.Module, path: Path) -> None:
    """Strictly: every tensor there, none too many. Raises UsageError naming the file and the first that differs."""
    load_strictly(model, read_tensors(path), "this variant", path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Of a safetensors file, once its digest was compared. Raises Damaged."""
    require_whole(path)
    try:
        return load_file(str(path))
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"cannot be read as weights ({error})", where=path, do=TRAIN_AGAIN) from None


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, sealed(lambda metadata: serialised(state, metadata), metadata))


def _of_process(folder: Path, index: int) -> Path:
    return folder / f"random_states_{index}.safetensors"


def _folders(run_dir: Path) -> tuple[Path, Path]:
    return run_dir / CHECKPOINT, run_dir / f"{CHECKPOINT}.old"


def _found(run_dir: Path, key: str) -> tuple[Path | None, dict[str, Any]]:
    """The last whole checkpoint of this run, and its position.json; step 0 where there is none."""
    for folder in _folders(run_dir):
        with suppress(Damaged):
            held = _held_by(folder)
            if held is not None and held["key"] == key:
                return folder, held
    return None, {"step": 0}


def _held_by(folder: Path) -> dict[str, Any] | None:
    """position.json; None where there is no checkpoint. Raises Damaged where a file is not the one that was written."""
    if not folder.is_dir():
        return None
    try:
        held = json.loads((folder / POSITION).read_bytes())
        if held.pop(DIGEST) != digest_of(held) or not _is_position(held):
            raise ValueError
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise Damaged("is no whole checkpoint of this version", where=folder) from None
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
    try:
        require_whole(path)
        return weights_metadata(path).get(DIGEST) == digest
    except Damaged:
        return False
    except CspineError:
        if path.is_file():
            raise
        return False


def _optimiser_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """`<place of the parameter>.<name>` -> tensor. Rates and the like follow from settings and step."""
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
            if name != STEP:  # laid out in memory as its parameter is, or each step would be slower
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            state.setdefault(int(place), {})[name] = value
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
