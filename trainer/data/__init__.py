"""From the cache to batches: items, their order, augmentation parameters, pixels, images."""
