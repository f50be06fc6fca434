"""The DALI graph: the only file that names DALI operators. One definition for triplets, windows and studies. On a GPU pictures
are made by DALI's operators; on a CPU, where these take several times as long, by `picture` with OpenCV.
"""

from typing import Any

import numpy as np
from nvidia.dali import fn, math, pipeline_def, types

from trainer.data.picture import MEAN, STD, picture
from trainer.data.resident import ResidentSource
from trainer.data.source import Sample

DALI_INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
MARGIN = 3
"""pixels of 0 around what the GPU's remap reads: more than bicubic interpolation reaches"""
NUMBERS = {"dtype": [types.FLOAT] * 6 + [types.INT64], "ndim": [2, 2, 2, 1, 1, 1, 1]}
"""all of a Sample but its pixels"""


@pipeline_def
def graph(source: Any, size: int, interpolation: str, gpu: bool, workers: int, longest_side: int):
    """Per sample: (frames / 3, 3, size, size) float16, normalised; and (1,) int64, the key of the item that was read.

    source: a Source, called in `workers` processes or, with 0, in this one; or a ResidentSource, whose pixels are on the device.
    longest_side: of its pixels, in any sample.
    """
    if isinstance(source, ResidentSource):
        device = "gpu" if gpu else "cpu"
        pixels = fn.external_source(source.pixels, batch=False, device=device, layout="FHWC", dtype=types.UINT8, ndim=4)
        numbers = fn.external_source(source.numbers, num_outputs=len(Sample._fields) - 1, batch=False, **NUMBERS)
    else:
        pixels, *numbers = fn.external_source(
            source,
            num_outputs=len(Sample._fields),
            batch=False,
            layout=["FHWC"] + [""] * (len(Sample._fields) - 1),
            dtype=[types.UINT8, *NUMBERS["dtype"]],
            ndim=[4, *NUMBERS["ndim"]],
            **({"parallel": True, "prefetch_queue_depth": 2} if workers else {}),
        )
    *draw, key = numbers
    if gpu:
        return by_dali(pixels, draw, size, interpolation, longest_side), key
    return by_opencv(pixels, draw, size, interpolation), key


def by_opencv(pixels: Any, draw: list[Any], size: int, interpolation: str) -> Any:
    def shown(*sample: np.ndarray) -> np.ndarray:
        return picture(Sample(*sample, key=None), size, interpolation)

    return fn.python_function(pixels, *draw, function=shown, output_layouts="FCHW")


def by_dali(pixels: Any, draw: list[Any], size: int, interpolation: str, longest_side: int) -> Any:
    """The same by DALI's operators."""
    matrix, axis_x, axis_y, gain, hole_start, hole_shape = draw
    matrix, axis_x, axis_y = matrix.gpu(), axis_x.gpu(), axis_y.gpu()
    map_x = matrix[0, 0] * axis_x + matrix[0, 1] * axis_y + (matrix[0, 2] - 0.5)
    map_y = matrix[1, 0] * axis_x + matrix[1, 1] * axis_y + (matrix[1, 2] - 0.5)
    x = remapped(pixels.gpu(), map_x, map_y, size, interpolation, longest_side)
    x = fn.brightness_contrast(x, contrast=gain, contrast_center=0.0)
    x = fn.erase(x, anchor=hole_start, shape=hole_shape, axis_names="HW", fill_value=0)
    x = fn.reshape(x, shape=[-1, 3, size, size], layout="FCHW")
    return fn.crop_mirror_normalize(x, dtype=types.FLOAT16, mean=MEAN.tolist(), std=STD.tolist(), output_layout="FCHW")


def remapped(pixels: Any, map_x: Any, map_y: Any, size: int, interpolation: str, longest_side: int) -> Any:
    """(frames, h, w, 1) uint8 through (size, size) maps of pixel indices; 0 outside. DALI's operator makes pictures as large as
    its input, does not fade the outermost pixels into the 0 around them, and leaves pixels that look beyond the input as they
    were in memory. So pictures and maps are laid on one canvas with a margin, maps stay on it, and the result is cut out."""
    canvas = max(size, longest_side + 2 * MARGIN)
    on_canvas = {"shape": [canvas, canvas], "out_of_bounds_policy": "pad"}
    pixels = fn.slice(pixels, start=[-MARGIN, -MARGIN], axes=[1, 2], fill_values=0, **on_canvas)
    maps = [math.clamp(map_ + float(MARGIN), 1.0, float(canvas - MARGIN)) for map_ in (map_x, map_y)]
    maps = [fn.slice(map_, start=[0, 0], axes=[0, 1], fill_values=1, **on_canvas) for map_ in maps]
    moved = fn.experimental.remap(pixels, *maps, interp=DALI_INTERPOLATION[interpolation], pixel_origin="center")
    return fn.slice(fn.reshape(moved, layout="FHWC"), start=[0, 0], shape=[size, size], axes=[1, 2])
