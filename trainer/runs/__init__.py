"""A run's folder: its file names, identity, inputs, weights, checkpoints, metrics log and lease."""
