"""The time of a training step: waiting for the loader, and computing."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count

from trainer.data.loader import Batch
from trainer.data.order import Training
from trainer.loop import Run
from trainer.models import Network
from trainer.tuning.autotune import wait
from trainer.tuning.tuning import tune

WARM_UP = 2
"""steps before the clock starts: the loader reads ahead, and the first pass of a network is slow"""


@dataclass(frozen=True)
class Steps:
    """Means over the measured steps."""

    steps: int
    items: int
    """in a step, on this process"""
    wait: float
    """seconds of a step in which the process waits for images"""
    compute: float
    """seconds of all else: forward and backward pass, optimiser"""

    @property
    def seconds(self) -> float:
        return self.wait + self.compute


def step_seconds(run: Run, network: Network, schedule: Training, ids: list[str], seconds: float, most: int) -> Steps:
    """Trains this network for at most `most` steps and about `seconds`. Nothing is written."""
    tuning = tune(run, network, schedule.items)
    model, optimiser, micro, passes = run.prepare(network, tuning)
    model.train()
    device, waited = run.accelerator.device, [0.0]
    loader = run.loader(schedule, micro, run.augmentation(), ids, targets=True, keep_chunks=run.by_block)
    with closing(iter(loader)) as batches:
        timed = _timed(batches, waited)
        for _ in range(WARM_UP):
            run.step(model, optimiser, timed, passes, 0, 1)
        wait(device)
        waited[0], began = 0.0, time.perf_counter()
        for step in count(1):
            run.step(model, optimiser, timed, passes, 0, 1)
            wait(device)
            took = time.perf_counter() - began
            if step == most or took > seconds:
                break
    return Steps(step, schedule.batch, waited[0] / step, (took - waited[0]) / step)


def _timed(batches: Iterator[Batch], waited: list[float]) -> Iterator[Batch]:
    """The same batches; adds the seconds until each is there to waited[0]."""
    while True:
        began = time.perf_counter()
        batch = next(batches)
        waited[0] += time.perf_counter() - began
        yield batch
