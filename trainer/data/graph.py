"""The DALI graph: the only file that names DALI operators. One definition for triplets, windows and studies, on CPU and GPU."""

from collections.abc import Callable

import cv2
import numpy as np
from nvidia.dali import fn, pipeline_def, types

from trainer.data.source import INTERPOLATION, MEAN, STD, Sample

DALI = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def remap_bilinear(pixels: np.ndarray, map_x: np.ndarray, map_y: np.ndarray) -> np.ndarray:
    return _remap(pixels, map_x, map_y, INTERPOLATION["bilinear"])


def remap_bicubic(pixels: np.ndarray, map_x: np.ndarray, map_y: np.ndarray) -> np.ndarray:
    return _remap(pixels, map_x, map_y, INTERPOLATION["bicubic"])


def _remap(pixels: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, interpolation: int) -> np.ndarray:
    """(frames, h, w, 1) uint8 through (size, size) maps of pixel indices; 0 outside. DALI's own CPU warp is 6 to 9 times slower."""
    out = np.empty((len(pixels), *map_x.shape, 1), np.uint8)
    for frame, picture in zip(pixels, out, strict=True):
        cv2.remap(frame[..., 0], map_x, map_y, interpolation, dst=picture[..., 0], borderMode=cv2.BORDER_CONSTANT)
    return out


@pipeline_def
def graph(source: Callable[..., Sample], size: int, interpolation: str, gpu: bool, workers: int):
    """(frames / 3, 3, size, size) float16 per sample, normalised."""
    parallel = {"parallel": True, "prefetch_queue_depth": 2} if workers else {}
    x, matrix, axis_x, axis_y, gain, hole_start, hole_shape = fn.external_source(
        source=source,
        num_outputs=len(Sample._fields),
        batch=False,
        layout=["FHWC"] + [""] * 6,
        dtype=[types.UINT8] + [types.FLOAT] * 6,
        ndim=[4, 2, 2, 2, 1, 1, 1],
        **parallel,
    )
    if gpu:
        x, matrix, axis_x, axis_y = x.gpu(), matrix.gpu(), axis_x.gpu(), axis_y.gpu()
    map_x = matrix[0, 0] * axis_x + matrix[0, 1] * axis_y + (matrix[0, 2] - 0.5)
    map_y = matrix[1, 0] * axis_x + matrix[1, 1] * axis_y + (matrix[1, 2] - 0.5)
    if gpu:
        x = fn.experimental.remap(x, map_x, map_y, interp=DALI[interpolation], pixel_origin="center")
    else:
        remap = {"bilinear": remap_bilinear, "bicubic": remap_bicubic}[interpolation]
        x = fn.python_function(x, map_x, map_y, function=remap, output_layouts="FHWC")
    x = fn.brightness_contrast(x, contrast=gain, contrast_center=0.0)
    x = fn.erase(x, anchor=hole_start, shape=hole_shape, axis_names="HW", fill_value=0)
    x = fn.reshape(x, shape=[-1, 3, size, size], layout="FCHW")
    return fn.crop_mirror_normalize(x, dtype=types.FLOAT16, mean=MEAN.tolist(), std=STD.tolist(), output_layout="FCHW")
