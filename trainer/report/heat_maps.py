"""Where in a slice the stage-3 network sees a level's fracture.

A heat map integrates gradients (Sundararajan et al. 2017) of the level's fracture output along the line from the blurred
image to the image itself: a pixel is hot where the detail that the blur takes away raises the output. Class activation maps
of the CNN's layers found half as many fractures (docs/howto.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cache_schema import LEVELS
from cache_schema.study import Box
from trainer.answers.answer import SuspectedSlice
from trainer.data.items import Item, windows

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.models import SliceFractureModel

STEPS = 8
"""points of the line at which the gradient is taken, in one pass of the CNN"""
BLUR, SMOOTH = 1 / 12, 1 / 14
"""of the image's side: the width of the mean filter that takes detail away, and the deviation of the Gaussian that joins
single pixels to an area"""

LEAST_HEAT = 0.25
"""a heat map below this share of its maximum is not laid over the image"""
OPACITY = 0.6
"""of a heat map at its maximum"""


@dataclass(frozen=True)
class HeatMap:
    """The heat map of a suspected slice, over the part of the slice that the network was shown."""

    suspected: SuspectedSlice
    values: np.ndarray
    """(h, w) float32 in [0, 1]"""
    square: Box
    """what the values cover: native pixels of the slice (cache_schema.study.square_around)"""

    def peak(self) -> tuple[float, float]:
        """x, y of the middle of the hottest cell, in native pixels: pixel i covers [i, i + 1)."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return native_point(self.square, self.values.shape, float(column) + 0.5, float(row) + 0.5)


def painted(image: np.ndarray, heat: HeatMap) -> np.ndarray:
    """(rows, columns) uint8, a whole slice -> (rows, columns, 3) uint8 RGB with the heat map over its square."""
    x0, y0, x1, y1 = heat.square
    values = cv2.resize(heat.values, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)[..., None]
    colours = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    found = np.repeat(image[..., None], 3, axis=2)
    inside = found[y0:y1, x0:x1]
    share = OPACITY * np.where(values < LEAST_HEAT, 0, values)
    inside[:] = np.rint(inside * (1 - share) + colours * share)
    return found


def native_point(square: Box, shape: tuple[int, ...], x: float, y: float) -> tuple[float, float]:
    """x, y in an image of `shape` (h, w) that shows a square of a slice, resized -> x, y in native pixels.

    Continuous coordinates: pixel i covers [i, i + 1). The same map as `AugmentParams.map_from_crop` without augmentation.
    """
    x0, y0, x1, y1 = square
    return x0 + x * (x1 - x0) / shape[1], y0 + y * (y1 - y0) / shape[0]


def window_around(id: str, slices: int, frames: int, stride: int, z_index: int) -> tuple[Item, int]:
    """The window of prediction that has the slice as a triplet's middle, nearest to its own middle; and that triplet's step.

    Raises ValueError for a slice that no window has in the middle of a triplet.
    """
    shown = [
        (item, step)
        for item in windows([(id, slices)], frames, stride)
        for step, start in enumerate(range(item.start, item.start + frames, 3))
        if min(start + 1, slices - 1) == z_index and start < slices
    ]
    if not shown:
        raise ValueError(f"z_index {z_index} is no triplet's middle in windows of {frames} slices, {stride} apart")
    return min(shown, key=lambda each: (abs(each[1] - (frames // 3 - 1) / 2), each[0].start))


def heat_map(
    stage_network: SliceFractureModel, images: np.ndarray, step: int, level: str, relative: np.ndarray | None = None
) -> np.ndarray:
    """(S, S) float32 in [0, 1], of one level's fracture at one step of a window, in the image's own coordinates.

    images: (T, 3, S, S) float16, one window as the loader gives it without augmentation. step: the triplet, from 0. level:
    C1..C7. relative: (3T,) in [0, 1] for positional=`relative` only. All zeros where no detail raises the output. The network
    is set to eval mode, and its parameters get no gradients. Takes one pass of the CNN over the window and one over STEPS images.
    """
    import torch

    network = stage_network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        window = torch.from_numpy(np.asarray(images)).to(device).float()
        places = None if relative is None else torch.from_numpy(np.asarray(relative, np.float32)).to(device)[None]
        with torch.no_grad():
            features = network.backbone(window)
        gained = _integrated(network, features, window[step], step, LEVELS.index(level), places)
    return _normalised(gained.sum(0).cpu().numpy())


def _integrated(
    network: SliceFractureModel, features: Tensor, image: Tensor, step: int, level: int, relative: Tensor | None
) -> Tensor:
    """(3, S, S): what each pixel's detail adds to the output. features: (T, width) of the whole window."""
    import torch

    blurred = _blurred(image)
    share = (torch.arange(STEPS, device=image.device) + 0.5) / STEPS
    with torch.enable_grad():
        along = (blurred + share[:, None, None, None] * (image - blurred)).requires_grad_()
        sequences = features.expand(STEPS, -1, -1).clone()
        sequences[:, step] = network.backbone(along)
        every = None if relative is None else relative.expand(STEPS, -1)
        # cuDNN's LSTM has a backward pass in train mode only, and train mode would draw dropout
        with torch.backends.cudnn.flags(enabled=False):
            output = network.sequence(sequences, every)["fracture"][:, step, level]
        (gradient,) = torch.autograd.grad(output.sum(), along)
    return gradient.mean(0) * (image - blurred)


def _blurred(image: Tensor) -> Tensor:
    """(3, S, S) -> the same shape: the mean of BLUR of the side, with the border repeated."""
    from torch.nn import functional as F

    reach = max(1, round(image.shape[-1] * BLUR / 2))
    return F.avg_pool2d(F.pad(image[None], (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)[0]


def _normalised(gained: np.ndarray) -> np.ndarray:
    """(S, S) -> float32 in [0, 1], smooth: only what raises the output."""
    smooth = cv2.GaussianBlur(np.maximum(gained, 0).astype(np.float32), (0, 0), SMOOTH * gained.shape[-1])
    most = float(smooth.max())
    return smooth / most if most > 0 else smooth
