"""Where every random number of the phantom comes from: one stream per (seed, study, purpose), so nothing else can
shift it."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes that must not disturb each other: the labels never move the anatomy, the anatomy never moves the
    noise."""

    ANATOMY = 0
    TEXTURE = 1
    SCAN = 2
    LABELS = 3
    FRACTURES = 4
    NOISE = 5
    FILES = 6
    CHOICE = 7


def stream(seed: int, purpose: Stream, *key: int) -> np.random.Generator:
    """The generator of one purpose; `key` is the study's index and, for noise, the slice's number."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(purpose), *key)))
