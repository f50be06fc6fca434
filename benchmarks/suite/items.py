"""The items that every way makes, and their augmentation parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.items import BOX, Cycle, augment_settings, triplet_schedule, warp_of, window_items
from benchmarks.peers.requests import item_fields
from cache_schema import Cache
from trainer.data.augment import Augmentation
from trainer.data.order import BLOCK, BUFFER, ScheduledItem
from trainer.data.source import TRIPLET_CHUNKS_BYTES, Source

SIZE, SEED = 512, 1
TRIPLETS = BLOCK * BUFFER
"""one shuffle buffer: within it a reader decodes each chunk once, as in an epoch of any length"""


@dataclass(frozen=True)
class Items:
    """Items of one kind."""

    entries: Sequence[ScheduledItem]
    source: Source

    def described(self) -> list[dict[str, Any]]:
        """What a way needs to make the same images, as JSON."""
        return [self._described(entry) for entry in self.entries]

    def _described(self, entry: ScheduledItem) -> dict[str, Any]:
        warp = warp_of(self.source.augmentation, entry.item) if self.source.boxes else "none"
        return {**item_fields(self.source, entry), "warp": warp}


def items_of(cache: Cache) -> tuple[Items, Items]:
    """(windows, triplets): a round of each. Windows are cut around a box, triplets are of whole slices."""
    augmentation = Augmentation(SIZE, SEED, augment_settings("vertebrae"))
    cycle = Cycle(window_items(cache, augmentation))
    windows = Items(
        [cycle[k] for k in range(len(cycle.items))], Source(cache, cycle, augmentation, dict.fromkeys(cache.ids, BOX))
    )
    schedule = triplet_schedule(cache)
    triplets = [schedule[k] for k in range(TRIPLETS)]
    source = Source(
        cache, schedule, Augmentation(SIZE, SEED, augment_settings("bbox")), keep_bytes=TRIPLET_CHUNKS_BYTES
    )
    return windows, Items(triplets, source)
