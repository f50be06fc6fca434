"""Where in a slice the stage-3 network sees a level's fracture.

A heat map integrates gradients (Sundararajan et al. 2017) of the level's fracture output along the line from the blurred
image to the image itself: a pixel is hot where the detail that the blur takes away raises the output. `make learn`
measures where they peak.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cache_schema import LEVELS, Study
from cache_schema.memory import MemoryCache
from trainer.answers.answer import Answer
from trainer.data.image import make_image
from trainer.data.items import Item, windows
from trainer.data.order import Evaluation
from trainer.data.source import Source
from trainer.models import SliceFractureModel
from trainer.report.heat_map import HeatMap
from trainer.tables.boxes import COLUMNS
from trainer.trained.models import SLICES

if TYPE_CHECKING:
    from trainer.predictor.predictor import Predictor

STEPS = 8
"""points of the line at which the gradient is taken, in one pass of the CNN, which takes no more images elsewhere either"""
BLUR, SMOOTH = 1 / 12, 1 / 14
"""of the image's side: the width of the mean filter that takes detail away, and the deviation of the Gaussian that joins
single pixels to an area"""
COUNT = 3
"""slices that get a heat map: those with the highest fracture values"""


def heat_maps(predictor: Predictor, study: Study, answer: Answer, count: int = COUNT) -> list[HeatMap]:
    """By the first slice model, which takes part in naming the slices; none without slice models.

    study: the answer's, with its pixels. Levels outside the field of view get none.
    """
    named = [each for each in answer.slices if each.level not in answer.outside]
    chosen = sorted(named, key=lambda each: -each.fracture)[:count]
    if not chosen:
        return []
    model = predictor.models.by_stage[SLICES][0]
    boxes = pd.DataFrame([(answer.id, *answer.box, *answer.z_range, answer.box_source, 0)], columns=COLUMNS)
    cache, network = (
        MemoryCache([study], predictor.models.pixel_hash),
        cast(SliceFractureModel, predictor.network(model)),
    )
    found = []
    with closing(predictor.session(model, cache, boxes)) as session:
        data, slices = session.settings.data, study.record.slices
        for each in chosen:
            item, step = window_around(study.id, slices, data.frames, data.eval_stride, each.z_index)
            own, shown = session.inputs.crop_boxes([study.id]), session.no_augmentation()
            source = Source(cache, Evaluation([item], 1), shown, own, data.intensity)
            images = make_image(source.read(0), data.size, data.interpolation)
            relative = np.maximum(item.z_index(), 0) / max(1, slices - 1)
            own_relative = relative if session.settings.model.positional == "relative" else None
            values = heat_map(network, images, step, each.level, own_relative)
            found.append(HeatMap(each, values, source.squares[study.id]))
    return found


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
    is set to eval mode, and its parameters get no gradients. Passes of the CNN have at most STEPS images.
    """
    network = stage_network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        window = torch.from_numpy(np.asarray(images)).to(device).float()
        places = None if relative is None else torch.from_numpy(np.asarray(relative, np.float32)).to(device)[None]
        with torch.no_grad():
            features = torch.cat([network.backbone(part) for part in window.split(STEPS)])
        gained = _integrated(network, features, window[step], step, LEVELS.index(level), places)
    return _normalised(gained.sum(0).cpu().numpy())


def _integrated(
    network: SliceFractureModel, features: Tensor, image: Tensor, step: int, level: int, relative: Tensor | None
) -> Tensor:
    """(3, S, S): what each pixel's detail adds to the output. features: (T, width) of the whole window."""
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
    reach = max(1, round(image.shape[-1] * BLUR / 2))
    return F.avg_pool2d(F.pad(image[None], (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)[0]


def _normalised(gained: np.ndarray) -> np.ndarray:
    """(S, S) -> float32 in [0, 1], smooth: only what raises the output."""
    smooth = cv2.GaussianBlur(np.maximum(gained, 0).astype(np.float32), (0, 0), SMOOTH * gained.shape[-1])
    most = float(smooth.max())
    return smooth / most if most > 0 else smooth
