"""Finds the fastest memory format and compilation of the CNN on this GPU. Weights depend on it only by rounding."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.models import Backbone

SECONDS = 60
"""no further layout is tried after this time; one compilation may exceed it"""
WARM_UPS, PASSES = 2, 5


class Layout(NamedTuple):
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = ["channels last" if self.channels_last else "channels first", "compiled" if self.compiled else "eager"]
        return ", ".join(parts)


LAYOUTS = (Layout(channels_last=True), Layout(channels_last=True, compiled=True), Layout())
"""in the order of trial, and of preference if equally fast; the compiler chooses layouts of its own. Channels first is last: cuDNN
took most of the minute to find algorithms for its depthwise convolutions"""


def fastest(
    layouts: Sequence[Layout],
    measure: Callable[[Layout], float],
    tell: Callable[[str], None] = print,
    seconds: float = SECONDS,
) -> Layout:
    """The fastest of the layouts tried within `seconds`. Any but the first may fail. measure: seconds of one pass."""
    ends = time.monotonic() + seconds
    found = {layouts[0]: measure(layouts[0])}
    for layout in layouts[1:]:
        if time.monotonic() > ends:
            tell(f"autotune: {layout} not tried after {seconds:.0f} s")
            continue
        try:
            found[layout] = measure(layout)
        except Exception as error:  # a compiler may fail in any way; the first layout works
            tell(f"autotune: {layout} failed ({type(error).__name__})")
    best = min(found, key=found.__getitem__)
    tell("autotune: " + "; ".join(f"{layout} {found[layout] * 1e3:.1f} ms" for layout in found) + f": {best}")
    return best


def seconds_per_pass(
    backbone: Backbone, images: Tensor, layout: Layout, autocast: Callable[[], AbstractContextManager]
) -> float:
    """Median seconds of a pass of a copy of this CNN: forward, and backward if it is trained."""
    trial = copy.deepcopy(backbone)
    trial.lay_out(layout.channels_last, layout.compiled)
    trained = any(parameter.requires_grad for parameter in trial.parameters())
    took = []
    for _ in range(WARM_UPS + PASSES):
        wait(images.device)
        began = time.perf_counter()
        with torch.set_grad_enabled(trained):
            with autocast():
                features = trial(images)
            if trained:
                features.sum().backward()
        wait(images.device)
        took.append(time.perf_counter() - began)
        trial.zero_grad(set_to_none=True)
    return median(took[WARM_UPS:])


def wait(device: torch.device) -> None:
    """Waits for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
