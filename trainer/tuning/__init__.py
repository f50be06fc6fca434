"""Choices made before the first step (memory format, compilation, micro-batch), and the feature bank."""
