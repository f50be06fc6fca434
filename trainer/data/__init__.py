"""From the cache to a batch: items, their order, augmentation parameters, pixels, images."""
