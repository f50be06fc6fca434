"""In which order items come: a pure function of (seed, epoch), and who reads which of them. Nothing here is ever stored to resume."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trainer.data.items import Item

BLOCK = 24
"""neighbouring triplets kept together, so that a chunk once decoded serves many of them"""
BUFFER = 16
"""blocks among which triplets are shuffled"""


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator that depends on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: one global order."""
    return generator(seed, epoch, 1).permutation(count)


def block_shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: blocks of neighbours shuffled, then single items shuffled inside a buffer of blocks."""
    random = generator(seed, epoch, 2)
    blocks = [np.arange(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    blocks = [blocks[i] for i in random.permutation(len(blocks))]
    buffers = (np.concatenate(blocks[first : first + BUFFER]) for first in range(0, len(blocks), BUFFER))
    parts = [random.permutation(buffer) for buffer in buffers]
    return np.concatenate(parts) if parts else np.empty(0, int)


@dataclass(frozen=True)
class ScheduledItem:
    """What one rank reads as its k-th item."""

    epoch: int
    item: Item
    counts: bool = True
    """False for the repeats that fill up the last batch of an evaluation"""


@dataclass(frozen=True)
class Training:
    """An endless stream of training items. Every `batch` consecutive items of the global order are one optimiser step, and inside
    it the ranks take turns; the tail shorter than a batch is dropped. `step` is where to start: resuming is nothing else."""

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
        return ScheduledItem(epoch, self.items[order[step * self.batch + turn * self.world + self.rank]])

    def instead(self, entry: ScheduledItem) -> ScheduledItem:
        """The item shown instead of one that cannot be read, chosen at random among all: its neighbours lie in the same chunks."""
        return ScheduledItem(
            entry.epoch, self.items[generator(self.seed, entry.epoch, entry.item.key, 4).integers(len(self.items))]
        )


@dataclass(frozen=True)
class Evaluation:
    """Every item once, in order, ranks taking turns; the last batch is filled up with repeats that do not count."""

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
