"""How models compute on a device: what the user gives, else what is chosen by its memory; less at once where memory was lacking.

None of it changes an answer, but for rounding on a GPU.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from cache_schema.machine import Machine
from trainer.session import THREADS, on_gpu
from trainer.settings.keyvalue import merge
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_class
from trainer.trained.models import TrainedModel

BYTES_PER_PIXEL = {"no": 480, "fp16": 300, "bf16": 300}
"""of an image of three slices, while a CNN computes it: an upper bound over the configured CNNs in float32, with what an allocator
leaves unused, see `tests/trainer/test_computing.py`; half precision halves the activations, but not what else there is"""
SHARE = 2
"""half of the free memory is for a pass of the CNN, the rest for weights, decoded studies and what DALI holds"""
MOST_IMAGES = {True: 32, False: 8}
"""on a GPU, and on a CPU: repeats fill the last pass of each study"""
MOST_PIXELS = 2**18
"""on a CPU, of all images at once, or one image: the tensors of larger passes exceed 32 MiB, above which glibc fetches memory anew
from the system for each: with eight of 512 x 512 an image takes about twice as long"""
WORDS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Device(NamedTuple):
    """What networks compute on."""

    name: str
    memory: int
    """free bytes"""
    capability: tuple[int, int] | None = None
    """of a GPU: CUDA's compute capability; None on a CPU"""


def this_device(machine: Machine) -> Device:
    """The device of this process, and what of it is free now."""
    if not on_gpu():
        return Device("CPU", machine.memory)
    from torch import cuda

    return Device(cuda.get_device_name(), cuda.mem_get_info()[0], cuda.get_device_capability())


def precision_of(device: Device) -> str:
    """`train.precision`: half where the device computes faster in it."""
    if device.capability is None:
        return "no"
    if device.capability >= (8, 0):
        return "bf16"
    # Pascal has fast float16 in its data-centre chip only
    return "fp16" if device.capability >= (7, 0) or device.capability == (6, 0) else "no"


def images_of(device: Device, size: int, precision: str) -> int:
    """Images of size x size pixels in one pass of a CNN: a power of two."""
    fit = device.memory // (SHARE * BYTES_PER_PIXEL[precision] * size**2)
    gpu = device.capability is not None
    most = MOST_IMAGES[gpu] if gpu else min(MOST_IMAGES[gpu], MOST_PIXELS // size**2)
    return 1 << max(1, min(fit, most)).bit_length() - 1


@cache
def without_dali() -> str:
    """Why DALI cannot be imported; empty where it can."""
    try:
        from trainer.data import dali  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


class Computing:
    """The settings by which each model computes. given: settings by section, as on the command line."""

    def __init__(self, given: Mapping[str, Any], device: Device, machine: Machine):
        self._given, self.device, self._machine = given, device, machine
        self._images: dict[str, int] = {}
        self._in_full: set[str] = set()

    def settings(self, model: TrainedModel) -> Settings:
        """Raises UsageError for a setting that does not fit the model."""
        chosen = merge(self._chosen(model), self._given, {"train": {"precision": self.precision(model)}})
        images, items = self.images(model), stage_class(model.stage).items
        if items == "triplets":
            chosen = merge(chosen, {"train": {"eval_batch": images}})
        elif items == "studies":
            chosen = merge(chosen, {"model": {"chunk": max(2, images)}})
        return model.settings(chosen, gpu=self._gpu)

    def images(self, model: TrainedModel) -> int:
        """In one pass of the model's CNN."""
        if model.name not in self._images:
            self._images[model.name] = self._first_images(model)
        return self._images[model.name]

    def precision(self, model: TrainedModel) -> str:
        """`train.precision`; float32 for a model that was trained in it."""
        if model.name in self._in_full:
            return "no"
        if (given := self._given.get("train", {}).get("precision")) is not None:
            return str(given) if given != "auto" else "fp16" if self._gpu else "no"
        trained = model.config["train"].get("precision")
        return "no" if trained == "no" else precision_of(self.device)

    def halve(self, model: TrainedModel) -> bool:
        """From now on the model's CNN takes half as many images. False if it takes one."""
        images = self.images(model)
        self._images[model.name] = max(1, images // 2)
        return images > 1

    def use_full_precision(self, model: TrainedModel) -> bool:
        """From now on the model computes in float32. False if it does, or if the user gave another precision."""
        if "precision" in self._given.get("train", {}) or self.precision(model) == "no":
            return False
        self._in_full.add(model.name)
        return True

    def lines(self, models: Iterable[TrainedModel], decoding: int) -> list[str]:
        """What a user should know. decoding: processes that decode studies beside the networks."""
        every = list(models)
        images: dict[str, list[int]] = {}
        for model in every:
            images.setdefault(model.stage, []).append(self.images(model))
        numbers = ", ".join(f"{stage} {_range(own)}" for stage, own in images.items())
        precisions = " and ".join(sorted({WORDS.get(name, name) for name in map(self.precision, every)}))
        free, threads = self.device.memory / 2**30, self.settings(every[0]).train.threads
        parts = [
            f"computes on {self.device.name} with {free:.1f} GiB free: {precisions}",
            f"images at once: {numbers}",
            f"{threads or THREADS} threads",
        ]
        if decoding:
            parts.append(f"{decoding} decoding process{'es' * (decoding > 1)}")
        why = f"without DALI ({without_dali()}): the plain loader makes the images" if self._plain else ""
        return ["; ".join(parts), why] if why else ["; ".join(parts)]

    @property
    def _gpu(self) -> bool:
        return self.device.capability is not None

    @property
    def _plain(self) -> bool:
        """Whether DALI would be used, and is not there."""
        return self._gpu and "loader" not in self._given.get("data", {}) and bool(without_dali())

    def _chosen(self, model: TrainedModel) -> dict[str, Any]:
        # each model's reading processes would start anew for each study, and get a copy of it
        data: dict[str, Any] = {"workers": 0} | ({"loader": "plain"} if self._plain else {})
        train = {"threads": min(THREADS, self._machine.cores)}
        if stage_class(model.stage).items == "studies":
            train["eval_batch"] = 1
        return {"data": data, "train": train}

    def _first_images(self, model: TrainedModel) -> int:
        stage = stage_class(model.stage)
        section, name = ("model", "chunk") if stage.items == "studies" else ("train", "eval_batch")
        settings = model.settings(self._given, gpu=self._gpu)
        if name in self._given.get(section, {}):
            return stage.images_a_pass(settings, settings.train.eval_batch)
        return images_of(self.device, settings.data.size, self.precision(model))


def _range(numbers: Collection[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least} to {most}"
