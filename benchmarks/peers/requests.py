"""The parent's side: this project's items and images, as fields of the requests that `serve` answers."""

from typing import Any

from trainer.data.image import MEAN, STD
from trainer.data.order import ScheduledItem
from trainer.data.source import Source


def item_fields(source: Source, entry: ScheduledItem) -> dict[str, Any]:
    """An ITEM: the same slices, box and augmentation parameters as `source.sample(entry)`."""
    item, params = entry.item, source.params(entry)
    x0, y0, x1, y1 = box = [int(edge) for edge in source.squares[item.id]]
    return {
        "id": item.id,
        "start": item.start + params.phase,
        "frames": item.frames,
        "step": params.step,
        "box": None if source.boxes is None else box,
        "gain": params.gain,
        "matrix": params.map_from_crop(y1 - y0, x1 - x0).tolist(),
        "axis_x": params.axis_x.tolist(),
        "axis_y": params.axis_y.tolist(),
        "holes": params.holes.tolist(),
        "reverse": params.reverse,
    }


def look_fields(size: int) -> dict[str, Any]:
    """The fields of `open` that all finished images share."""
    return {"size": size, "mean": MEAN.tolist(), "std": STD.tolist()}
