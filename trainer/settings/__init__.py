"""Typed settings, their layers and key=value words, and the paths that they name. Nothing here imports torch."""
