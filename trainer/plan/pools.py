"""Pools that make runs: a local one over this machine's GPUs or cores, or a Dask cluster (trainer.plan.dask_pool)."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from trainer.plan.launch import Children, RunOrder, RunOutcome, launch, remove_mark


class Pool(Protocol):
    slots: int
    """runs at a time"""
    spreads: bool
    """whether a run may take several slots"""

    def submit(self, order: RunOrder, width: int) -> Future[RunOutcome]: ...

    def stop(self) -> None:
        """Ends the runs of a local pool; those on a cluster continue."""


class LocalPool:
    """Runs as child processes. A slot is a GPU, or on a CPU one of `jobs` simultaneous runs."""

    def __init__(self, jobs: int | None):
        devices = gpus()
        self.slots = jobs or max(1, len(devices))
        self.spreads = 1 < len(devices) == self.slots
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for slot in range(self.slots):
            self._free.put(devices[slot % len(devices)] if devices else None)
        self._threads = ThreadPoolExecutor(self.slots)
        self._children = Children()

    def submit(self, order: RunOrder, width: int) -> Future[RunOutcome]:
        return self._threads.submit(self._launch, order, width)

    def _launch(self, order: RunOrder, width: int) -> RunOutcome:
        taken = [self._free.get() for _ in range(width)]
        try:
            devices = tuple(device for device in taken if device is not None) or None
            return launch(order._replace(devices=devices), self._children)
        finally:
            remove_mark(order)  # a local pool never repeats an order
            for device in taken:
                self._free.put(device)

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._children.stop()


def gpus() -> list[str]:
    """This process's GPUs, by the driver's device files: a plan does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def open_pool(scheduler: str | None, jobs: int | None) -> Pool:
    """A local pool, or the cluster of a Dask scheduler."""
    if scheduler is None:
        return LocalPool(jobs)
    from trainer.plan.dask_pool import DaskPool

    return DaskPool(scheduler)
