"""Images and floating-point operations of the reference's 83 trainings, by calculation."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.data.items import adaptive_stride, triplets, whole_studies, windows
from trainer.inference import distinct
from trainer.plan.graph import read_plan
from trainer.settings.layers import load
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import CONFIGS

STUDIES, SEGMENTED, SLICES, Z_RANGE, FOLDS = 2019, 87, 352, 0.76, 5
"""reference 13; assumes that every study has the mean length"""
PLAN = CONFIGS / "plan" / "rsna22.yaml"


@dataclass(frozen=True)
class ImageCount:
    """Images of one run: forward and backward (trained), and forward only (shown)."""

    trained: float
    shown: float

    def flops(self, forward: float) -> float:
        """forward: floating-point operations of one image; the backward pass takes twice as many."""
        return forward * (3 * self.trained + self.shown)


def runs() -> list[Settings]:
    """The settings of the plan's trainings. Opens no cache or table."""
    plan = read_plan(PLAN, Path("CACHE"), Path("RUNS"))
    return [load(node.words, must_exist=False) for node in plan.runs]


def image_count(settings: Settings) -> ImageCount:
    """Images of one training, with its evaluations and the prediction of its held-out fold."""
    data, train, stage = settings.data, settings.train, settings.facts
    every = SEGMENTED if stage.learns_from == "segmentations" else STUDIES
    studies = every if settings.fold == "all" else every * (1 - 1 / FOLDS)
    length, z_range = [("", SLICES)], round(Z_RANGE * SLICES)
    if stage.items == "triplets":
        items = triplets(length, every=1)
        evaluated = len(triplets(length, every=3))
    elif stage.items == "studies":
        items = whole_studies(length, {"": (0, z_range)})
        evaluated = items[0].frames // 3
    else:
        stride = adaptive_stride(z_range) if data.stride == "adaptive" else data.stride
        items = windows(length, data.frames, stride)
        evaluated = len(distinct(windows(length, data.frames, data.eval_stride)))
    seen = train.epochs * studies * sum(item.frames // 3 for item in items)
    held_out = 0.0
    if settings.fold != "all":
        evaluations = (train.epochs - 1) // train.evaluate_every if train.evaluate_every else 0
        held_out = evaluated * (STUDIES / FOLDS + evaluations * every / FOLDS)
    return ImageCount(0, seen + held_out) if stage.backbone is not None else ImageCount(seen, held_out)


@lru_cache
def forward_flops(name: str, size: int) -> int:
    """Operations of one image in a timm model without its classifier; a multiply-add counts as two."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0).eval()
        image = torch.zeros(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        net(image)
    return counted.get_total_flops()
