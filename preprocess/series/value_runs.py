"""Runs of neighbouring values of one header field: images of one run may be one volume, or one acquisition."""

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from preprocess.series.interleaving import distinct

Labels = Sequence[Hashable]
"""one for each image: those of one label belong together"""

FAR = 10.0
"""a pause between values that is so many times the usual one parts one acquisition from the next"""
MOST_CUTS = 7
MOST_TURNS = 3
"""a scan that turns back more often was not made of a few volumes, but numbered oddly"""


def by_cuts(order: list[int], cuts: list[int]) -> Labels:
    """The run of each image, where runs of `order` begin at `cuts`."""
    labels = [0] * len(order)
    for place, run in enumerate(np.searchsorted(cuts, np.arange(len(order)), side="right").tolist()):
        labels[order[place]] = run
    return labels


def possible_cuts(values: Labels, positions: np.ndarray) -> Iterator[list[int]]:
    """Where runs of sorted values may begin: after the longest pauses, where the scan turns back, and where a place comes
    again."""
    changes = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        pauses = sorted(changes, key=lambda i: numbers[i - 1] - numbers[i])
        for count in range(1, min(MOST_CUTS, len(pauses)) + 1):
            yield sorted(pauses[:count])
    yield from possible_turns(changes, positions)
    yield _where_places_repeat(changes, positions)


def possible_turns(changes: list[int], positions: np.ndarray) -> Iterator[list[int]]:
    """At every turn the images of the value at which it turns may be the last of one run or the first of the next."""
    turns = _where_it_turns(changes, positions)
    yield turns
    place = {at: i for i, at in enumerate(changes)}
    if turns and all(place[at] for at in turns):
        yield [changes[place[at] - 1] for at in turns]


def _where_it_turns(changes: list[int], positions: np.ndarray) -> list[int]:
    """Cuts among `changes` after which every run goes one way along z."""
    cuts, way = [], 0.0
    for i in changes:
        step = np.sign(positions[i] - positions[i - 1])
        if way and step and step != way:
            cuts.append(i)
            way = 0.0
        else:
            way = step or way
    return cuts


def _where_places_repeat(changes: list[int], positions: np.ndarray) -> list[int]:
    """Every run visits a place once; none where a run goes back and forth, as in scans whose values are interwoven."""
    cuts, begin = [], 0
    for i, end in zip(changes, [*changes[1:], len(positions)], strict=True):
        run = positions[begin:end]
        if len(distinct(run)) < len(run):
            cuts.append(i)
            begin = i
    ends = [0, *cuts, len(positions)]
    return cuts if all(_turns_of(positions[a:b]) <= MOST_TURNS for a, b in pairwise(ends)) else []


def _turns_of(positions: np.ndarray) -> int:
    ways = np.sign(np.diff(positions))
    return int(np.count_nonzero(np.diff(ways[ways != 0])))


def by_pauses(labels: Labels) -> Labels:
    """Numbers, cut at pauses far longer than the usual one; one label where there is none, or where they are no
    numbers."""
    if not all(isinstance(label, float) for label in labels):
        return [0] * len(labels)
    values = np.unique(np.array(labels, float))
    pauses = np.diff(values)
    cuts = values[1:][pauses > FAR * np.median(pauses)]
    return np.searchsorted(cuts, np.array(labels, float), side="right").tolist()
