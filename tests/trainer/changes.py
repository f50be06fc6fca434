"""Studies of a cache as another build would give them, and weights that say something else of themselves."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from cache_schema import Study
from trainer.runs.weights import DIGEST, sealed


class Inverted:
    """A study's pixels, white for black."""

    def __init__(self, study: Study):
        self.study = study

    def read(self, z0, z1, box=None):
        return 255 - self.study.pixels.read(z0, z1, box)


def other_pixels(study: Study) -> Study:
    labels = {"slice_box": study.slice_box, "vertebra_ratio": study.vertebra_ratio}
    record = study.record.model_copy(update={"content_digest": None})
    return Study(record, study.z, study.slice_number, Inverted(study), **labels)


def other_segmentation(study: Study) -> Study:
    record = study.record.model_copy(update={"segmentation_digest": None})
    boxes = np.where(study.slice_box >= 0, study.slice_box + 1, -1)
    return Study(record, study.z, study.slice_number, study.pixels, boxes, study.vertebra_ratio)


def resave(path: Path, **changes: str | None) -> None:
    """The same tensors with other metadata; None takes one away. The digest stays as it was."""
    with safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.offset_keys()}, dict(file.metadata())
    metadata = {name: value for name, value in (metadata | changes).items() if value is not None}
    path.write_bytes(save(tensors, metadata))


def reseal(path: Path, **changes: str) -> str:
    """The same with a digest that is right; returns it."""
    resave(path, **changes)
    with safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.offset_keys()}, dict(file.metadata())
    path.write_bytes(sealed(lambda metadata: save(tensors, metadata), metadata))
    with safe_open(path, "np") as file:
        return file.metadata()[DIGEST]
