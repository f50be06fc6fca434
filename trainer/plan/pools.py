"""Where runs are made: a local pool over this machine's GPUs or cores, or a Dask cluster (trainer.plan.cluster)."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from trainer.plan.launch import Children, RunOrder, RunOutcome, forget, launch


class Pool(Protocol):
    slots: int
    """runs at a time"""
    spreads: bool
    """whether one run may take several slots"""

    def submit(self, order: RunOrder, width: int) -> Future[RunOutcome]: ...

    def stop(self) -> None:
        """Ends what runs, where that is this plan's to do."""
        ...


class LocalPool:
    """Runs as children of this process: a slot is a GPU, or on a CPU one of `jobs` runs at a time."""

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
            forget(order)  # nothing sends it again
            for device in taken:
                self._free.put(device)

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._children.stop()


def gpus() -> list[str]:
    """This process's GPUs, counted by the driver's device files so that the plan itself need not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
