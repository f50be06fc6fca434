"""The order of items, a pure function of (seed, epoch), and each rank's share. Resuming stores nothing of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from trainer.data.items import Item

BLOCK = 24
"""consecutive triplets that stay together, so that many use a chunk while it is decoded"""
BUFFER = 16
"""blocks in a shuffle buffer"""


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator that depends only on the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: a random permutation."""
    return generator(seed, epoch, 1).permutation(count)


def block_shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: blocks of consecutive items in random order, then items shuffled within each buffer of blocks."""
    random = generator(seed, epoch, 2)
    blocks = [np.arange(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    blocks = [blocks[i] for i in random.permutation(len(blocks))]
    buffers = (np.concatenate(blocks[first : first + BUFFER]) for first in range(0, len(blocks), BUFFER))
    parts = [random.permutation(buffer) for buffer in buffers]
    return np.concatenate(parts) if parts else np.empty(0, int)


@dataclass(frozen=True)
class ScheduledItem:
    """The k-th item of one rank."""

    epoch: int
    item: Item
    counts: bool = True
    """False for repeats that fill an evaluation's last batch"""


class Schedule(Protocol):
    """The sequence of items that one rank reads."""

    @property
    def items(self) -> Sequence[Item]: ...

    def __getitem__(self, k: int, /) -> ScheduledItem: ...


@dataclass(frozen=True)
class Training:
    """An endless schedule of training items, starting at optimiser step `step`; resuming needs nothing else.

    Every `batch` consecutive items of the global order are one optimiser step, which ranks share in turns. An epoch drops
    its last incomplete batch.
    """

    items: Sequence[Item]
    seed: int
    batch: int
    rank: int = 0
    world: int = 1
    step: int = 0
    by_block: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return len(self.items) // self.batch

    def __getitem__(self, k: int) -> ScheduledItem:
        """The k-th item of this rank after `step`."""
        step, turn = divmod(k, self.batch // self.world)
        epoch, step = divmod(self.step + step, self.steps_per_epoch)
        order = _order(len(self.items), self.seed, epoch, self.by_block)
        return ScheduledItem(epoch, self.items[int(order[step * self.batch + turn * self.world + self.rank])])

    def instead(self, entry: ScheduledItem) -> ScheduledItem:
        """Replaces an item that cannot be read by a random one: the damaged chunk holds its neighbours, too."""
        k = generator(self.seed, entry.epoch, entry.item.key, 4).integers(len(self.items))
        return ScheduledItem(entry.epoch, self.items[int(k)])


@dataclass(frozen=True)
class Evaluation:
    """Every item once, in order, shared by ranks in turns. Repeats that do not count fill the last batch."""

    items: Sequence[Item]
    batch: int
    """items per rank and forward pass"""
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        return -(-len(self.items) // (self.batch * self.world))

    def __getitem__(self, k: int) -> ScheduledItem:
        position = k * self.world + self.rank
        return ScheduledItem(0, self.items[min(position, len(self.items) - 1)], position < len(self.items))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int, by_block: bool) -> np.ndarray:
    return (block_shuffled if by_block else shuffled)(count, seed, epoch)
