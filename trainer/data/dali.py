"""The DALI graph, the same for triplets, windows and studies. No other file names DALI operators.

torch can warp images on any device; on a CPU `make_image` gives the same result by OpenCV in less time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.python_function_plugin import current_dali_stream
from nvidia.dali.types import DALIDataType
from torch.utils import dlpack

from trainer.data.image import MEAN, STD, make_image
from trainer.data.image_torch import warp_items
from trainer.data.resident import ResidentSource
from trainer.data.source import Sample

PIXELS: dict[str, Any] = {"dtype": DALIDataType.UINT8, "ndim": 4, "layout": "FHWC"}
NUMBERS: dict[str, Any] = {"dtype": [DALIDataType.FLOAT] * 5 + [DALIDataType.INT64], "ndim": [2, 2, 2, 1, 1, 1]}
"""the other fields of a Sample"""
NO_KEY = np.zeros(1, np.int64)

Images = Callable[[Any, list[Any], int, str, str], Any]
"""(pixels, augmentation parameters, size, interpolation, device) -> the graph's images"""


@pipeline_def
def graph(source: Any, size: int, interpolation: str, device: str, images: Images) -> tuple[Any, Any]:
    """Per sample: (frames / 3, 3, size, size) float16, normalised; and (1,) int64, the item's key.

    source: called with DALI's SampleInfo, returns a Sample's arrays, as a Source does; or a ResidentSource, whose pixels are on
    the device. device: cpu or gpu. images: `opencv_images` or `torch_images`.
    """
    count = len(NUMBERS["ndim"])
    if isinstance(source, ResidentSource):
        stream = source.stream
        pixels = fn.external_source(source.pixels, batch=False, device=device, cuda_stream=stream, **PIXELS)
        numbers = fn.external_source(source.numbers, num_outputs=count, batch=False, **NUMBERS)
    else:
        fields: dict[str, Any] = {name: [PIXELS[name], *NUMBERS[name]] for name in NUMBERS}
        fields["layout"] = [PIXELS["layout"], *[""] * count]
        pixels, *numbers = fn.external_source(source, num_outputs=1 + count, batch=False, **fields)
    *params, key = numbers
    return images(pixels, params, size, interpolation, device), key


def opencv_images(pixels: Any, params: list[Any], size: int, interpolation: str, device: str) -> Any:
    """On a CPU."""

    def image(*fields: np.ndarray) -> np.ndarray:
        return make_image(Sample._make([*fields, NO_KEY]), size, interpolation)

    return fn.python_function(pixels, *params, function=image, output_layouts="FCHW", device=device)


def torch_images(pixels: Any, params: list[Any], size: int, interpolation: str, device: str) -> Any:
    """On any device."""
    matrix, axis_x, axis_y, hole_start, hole_shape = params
    inputs = pixels, matrix, axis_x, axis_y
    if device == "gpu":
        inputs = tuple(node.gpu() for node in inputs)
    # no synchronisation: the function computes on DALI's own stream
    options: dict[str, Any] = {"batch_processing": True, "synchronize_stream": False, "device": device}
    warp = _on_dlpack(interpolation, device)
    x = fn.dl_tensor_python_function(*inputs, function=warp, output_layouts="FHWC", **options)
    x = fn.erase(x, anchor=hole_start, shape=hole_shape, axis_names="HW", fill_value=0)
    x = fn.reshape(x, shape=[-1, 3, size, size], layout="FCHW")
    mean, std = MEAN.tolist(), STD.tolist()
    return fn.crop_mirror_normalize(x, dtype=DALIDataType.FLOAT16, mean=mean, std=std, output_layout="FCHW")


def _on_dlpack(interpolation: str, device: str) -> Callable[..., list[Any]]:
    """`warp_items` on batches of DLPack tensors, as DALI passes them."""

    def warp(*inputs: list[Any]) -> list[Any]:
        pixels, matrices, axes_x, axes_y = ([dlpack.from_dlpack(each) for each in batch] for batch in inputs)
        stream = torch.cuda.ExternalStream(current_dali_stream(), pixels[0].device) if device == "gpu" else None
        with torch.no_grad(), torch.cuda.stream(stream):
            warped = warp_items(pixels, matrices, axes_x, axes_y, interpolation)
            return [dlpack.to_dlpack(item) for item in warped]

    return warp
