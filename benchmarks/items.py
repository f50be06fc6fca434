"""Which items the benchmarks make: of a cache of phantoms, with the augmentation of training."""

from collections.abc import Sequence

from cache_schema import Cache
from trainer.data.augment import Augmentation
from trainer.data.items import Item, triplets, windows
from trainer.data.order import ScheduledItem, Training, generator
from trainer.settings.layers import load
from trainer.settings.settings import AugmentSettings

BOX = (100, 110, 400, 410)
"""300 x 300: about the median crop in training"""
TRIPLETS_A_ROUND = 16


class Cycle:
    """A schedule that repeats a few items."""

    def __init__(self, items: Sequence[Item]):
        self.items = items

    def __getitem__(self, k: int) -> ScheduledItem:
        return ScheduledItem(0, self.items[k % len(self.items)])


def warp_of(augmentation: Augmentation, item: Item) -> str:
    """An item's last geometric augmentation in the first epoch."""
    assert augmentation.seed is not None
    happens, which = generator(augmentation.seed, 0, item.key, 3).random(11)[9:]
    return "none" if happens >= augmentation.augment.warp else "grid" if which < 0.5 else "affine"


def window_items(cache: Cache, augmentation: Augmentation) -> list[Item]:
    """Four windows whose last augmentations match the average: one grid distortion, one random affine and two without."""
    lengths = [(row.id, int(row.slices)) for row in cache.index.itertuples() if row.slices >= 96]
    wanted, chosen = ["none", "none", "grid", "affine"], []
    for item in windows(lengths, 96, 4):
        if (kind := warp_of(augmentation, item)) in wanted:
            wanted.remove(kind)
            chosen.append(item)
    return chosen


def triplet_schedule(cache: Cache) -> Training:
    lengths = [(row.id, int(row.slices)) for row in cache.index.itertuples()]
    return Training(triplets(lengths, every=1), 1, TRIPLETS_A_ROUND, by_block=True)


def augment_settings(stage: str) -> AugmentSettings:
    """The stage's settings in training."""
    words = [f"stage={stage}", "cache=.", "out=."]
    return load(words, must_exist=False).augment
