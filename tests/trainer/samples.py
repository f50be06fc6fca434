"""Images of random pixels, augmented as a training item's are."""

import cv2
import numpy as np

from trainer.data.augment import augment_params, no_augmentation
from trainer.data.items import Item
from trainer.data.order import ScheduledItem
from trainer.data.source import assemble
from trainer.settings.settings import AugmentSettings

SIZE = 96


class Samples:
    """Stands in for a Source where a test wants to choose the pixels itself."""

    def __init__(self, samples, entries):
        self.samples, self.schedule, self.limit = samples, entries, len(samples)
        self.params = lambda entry: no_augmentation(SIZE)

    def __call__(self, info):
        if info.idx_in_epoch >= self.limit:
            raise StopIteration
        return self.samples[info.idx_in_epoch]

    def read(self, k):
        return self.samples[k]


def random_samples(count, frames=6, seed=0, white=0):
    """white: as many white images come before."""
    random = np.random.default_rng(seed)
    samples = [assemble(np.full((frames, 78, 60), 255, np.uint8), no_augmentation(SIZE), k) for k in range(white)]
    entries = [ScheduledItem(0, Item(k, "a", 0, frames, 200)) for k in range(white)]
    for k in range(white, white + count):
        item = Item(k, "a", 0, frames, 200)
        pixels = random.integers(0, 256, (frames, 70 + k - white, 60)).astype(np.uint8)
        pixels = np.stack([cv2.GaussianBlur(p, (0, 0), 1.5) for p in pixels])
        samples.append(assemble(pixels, augment_params(0, 0, item, AugmentSettings(), SIZE), k))
        entries.append(ScheduledItem(0, item))
    return Samples(samples, entries)
