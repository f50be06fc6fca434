"""The DALI graph: the only file that names DALI operators. One definition for triplets, windows and studies. Images are moved by
torch, on any device; on a CPU `make_image` makes them with OpenCV, the same and in less time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.python_function_plugin import current_dali_stream
from torch.utils import dlpack

from trainer.data.image import MEAN, STD, make_image
from trainer.data.image_torch import warp_items
from trainer.data.resident import ResidentSource
from trainer.data.source import Sample

NUMBERS = {"dtype": [types.FLOAT] * 5 + [types.INT64], "ndim": [2, 2, 2, 1, 1, 1]}
"""all of a Sample but its pixels"""

Images = Callable[[Any, list[Any], int, str, str], Any]
"""(pixels, numbers, size, interpolation, device) -> the graph's images"""


@pipeline_def
def graph(source: Any, size: int, interpolation: str, device: str, images: Images):
    """Per sample: (frames / 3, 3, size, size) float16, normalised; and (1,) int64, the key of the item that was read.

    source: gives a Sample's arrays for DALI's sample info, as a Source does; or a ResidentSource, whose pixels are on the device.
    device: cpu or gpu, where `images`, one of the functions below, makes them.
    """
    if isinstance(source, ResidentSource):
        given = {"device": device, "cuda_stream": source.stream, "layout": "FHWC", "dtype": types.UINT8, "ndim": 4}
        pixels = fn.external_source(source.pixels, batch=False, **given)
        numbers = fn.external_source(source.numbers, num_outputs=len(Sample._fields) - 1, batch=False, **NUMBERS)
    else:
        pixels, *numbers = fn.external_source(
            source,
            num_outputs=len(Sample._fields),
            batch=False,
            layout=["FHWC"] + [""] * (len(Sample._fields) - 1),
            dtype=[types.UINT8, *NUMBERS["dtype"]],
            ndim=[4, *NUMBERS["ndim"]],
        )
    *params, key = numbers
    return images(pixels, params, size, interpolation, device), key


def by_opencv(pixels: Any, params: list[Any], size: int, interpolation: str, device: str) -> Any:
    """On a CPU."""

    def shown(*sample: np.ndarray) -> np.ndarray:
        return make_image(Sample(*sample, key=None), size, interpolation)

    return fn.python_function(pixels, *params, function=shown, output_layouts="FCHW", device=device)


def by_torch(pixels: Any, params: list[Any], size: int, interpolation: str, device: str) -> Any:
    """On any device."""

    def there(node: Any) -> Any:
        return node.gpu() if device == "gpu" else node

    matrix, axis_x, axis_y, hole_start, hole_shape = params
    given = map(there, (pixels, matrix, axis_x, axis_y))
    # the function computes on DALI's own stream: neither waits for the other
    how = {"batch_processing": True, "synchronize_stream": False, "output_layouts": "FHWC", "device": device}
    x = fn.dl_tensor_python_function(*given, function=_by_torch(interpolation, device), **how)
    x = fn.erase(x, anchor=hole_start, shape=hole_shape, axis_names="HW", fill_value=0)
    x = fn.reshape(x, shape=[-1, 3, size, size], layout="FCHW")
    return fn.crop_mirror_normalize(x, dtype=types.FLOAT16, mean=MEAN.tolist(), std=STD.tolist(), output_layout="FCHW")


def _by_torch(interpolation: str, device: str) -> Callable[..., list[Any]]:
    """`warp_items` as DALI calls it, with a batch of each input as DLPack tensors."""

    def moved(*inputs: list[Any]) -> list[Any]:
        tensors = [[dlpack.from_dlpack(each) for each in batch] for batch in inputs]
        stream = torch.cuda.ExternalStream(current_dali_stream(), tensors[0][0].device) if device == "gpu" else None
        with torch.no_grad(), torch.cuda.stream(stream):
            return [dlpack.to_dlpack(item) for item in warp_items(*tensors, interpolation)]

    return moved
