"""The states of all generators of random numbers in this process, as tensors and plain numbers."""

import json
import random

import numpy as np
import torch

NUMBERS = "numbers"
CUDA = "cuda."


def states() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata) of Python's, numpy's and torch's own generators, on every GPU too."""
    version, internal, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    tensors = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"{CUDA}{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {"python": [version, gauss], "numpy": [kind, place, has_gauss, cached]}
    return tensors, {NUMBERS: json.dumps(numbers)}


def restore(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """As `states` gave them. Those of GPUs count where this process sees as many."""
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
