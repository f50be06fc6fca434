"""What reading processes are asked for in tests. Imports little: each process imports it anew."""

import os

import cv2
import numpy as np

from trainer.data.reader_process import LARGE


def numbers(k: int) -> tuple[np.ndarray, ...]:
    """A small array, one that goes through shared memory and has a length of its own, and one of the process."""
    return np.int64([k]), np.full((LARGE + 1000 * (k % 5)) // 8, k, np.float64), np.int64([os.getpid()])


def too_large(k: int) -> tuple[np.ndarray, ...]:
    return np.full(3 * LARGE, k % 251, np.uint8), np.full(2 * LARGE, k % 241, np.uint8)


def opencv_threads(k: int) -> tuple[np.ndarray, ...]:
    return (np.int64([cv2.getNumThreads()]),)


class Failing:
    """At the third."""

    def __init__(self, kind: type[Exception], *words: object, **more: object):
        self.kind, self.words, self.more = kind, words, more

    def error(self) -> Exception:
        return self.kind(*self.words, **self.more)

    def __call__(self, k: int) -> tuple[np.ndarray, ...]:
        if k == 2:
            raise self.error()
        return (np.int64([k]),)


class Unpicklable(Exception):
    """Its arguments are not what it is made from again."""

    def __init__(self, one, two):
        super().__init__(one)
