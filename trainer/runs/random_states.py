"""The states of all random number generators of this process, as tensors and numbers."""

import json
import random

import numpy as np
import torch

NUMBERS = "numbers"
CUDA = "cuda."


def states() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata) of the generators of Python, NumPy and torch, including all GPUs."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    own = legacy["state"]
    tensors = {"python": torch.tensor(internal, dtype=torch.int64), "torch": torch.get_rng_state()}
    tensors["numpy"] = torch.from_numpy(own["key"].astype(np.int64))
    if torch.cuda.is_available():
        tensors |= {f"{CUDA}{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {
        "python": [version, gauss],
        "numpy": [legacy["bit_generator"], own["pos"], legacy["has_gauss"], legacy["gauss"]],
    }
    return tensors, {NUMBERS: json.dumps(numbers)}


def restore(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Restores what `states` returned; GPU states only if the number of GPUs is the same."""
    numbers = json.loads(metadata[NUMBERS])
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, *rest = numbers["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    devices = [tensors[name] for name in sorted(tensors, key=_device) if name.startswith(CUDA)]
    if devices and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(devices)


def _device(name: str) -> int:
    return int(name.removeprefix(CUDA)) if name.startswith(CUDA) else -1
