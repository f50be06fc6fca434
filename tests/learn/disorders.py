"""Disorders planted in sound curves: levels swapped, missing or doubled, and fields of view that end within the neck."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from cache_schema import LEVELS
from trainer.answers.answer import Flag

REASON = {"swapped": "levels_out_of_order", "missing": "level_missing", "doubled": "level_twice"}
KINDS = (*REASON, "cut_top", "cut_bottom")
APART_MM = 32.0
"""of a doubled level's copy: two levels, since models confuse neighbours anyway"""
PART = 0.25
"""ratio from which what is left of a level may be seen"""
QUIET = 0.03
"""standard deviation of a ratio where its level is not"""


class Planted(NamedTuple):
    kind: str
    curves: pd.DataFrame
    """z_index, C1..C7"""
    z: np.ndarray
    """(slices,) mm, head to feet; shorter where the field of view is cut"""
    levels: tuple[str, ...]
    """swapped: both; cut: those whose fullest slice is gone"""


def planted(
    curves: Mapping[str, pd.DataFrame], z: Mapping[str, np.ndarray], count: int, seed: int
) -> Iterator[Planted]:
    """`count` disorders in random studies, all kinds in turn.

    curves: id -> z_index, C1..C7 of a sound study. z: id -> (slices,) mm, strictly decreasing.
    """
    rng, ids = np.random.default_rng(seed), sorted(curves)
    for number in range(count):
        id, kind = str(rng.choice(ids)), KINDS[number % len(KINDS)]
        own = curves[id][["z_index", *LEVELS]].sort_values("z_index").reset_index(drop=True)
        plant = {"swapped": _swapped, "missing": _missing, "doubled": _doubled}.get(kind)
        if plant is not None:
            changed, levels = plant(own, z[id], rng)
            yield Planted(kind, changed, z[id], levels)
        else:
            yield _cut(kind, own, z[id], rng)


def _swapped(curves: pd.DataFrame, z: np.ndarray, rng: np.random.Generator) -> tuple[pd.DataFrame, tuple[str, ...]]:
    one, other = sorted(map(str, rng.choice(LEVELS, 2, replace=False)))
    return curves.rename(columns={one: other, other: one})[["z_index", *LEVELS]], (one, other)


def _missing(curves: pd.DataFrame, z: np.ndarray, rng: np.random.Generator) -> tuple[pd.DataFrame, tuple[str, ...]]:
    level = str(rng.choice(LEVELS))
    return curves.assign(**{level: QUIET * rng.standard_normal(len(curves))}), (level,)


def _doubled(curves: pd.DataFrame, z: np.ndarray, rng: np.random.Generator) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A copy of at least 70 % of a level's height, wherever there is room for it."""
    level = str(rng.choice(LEVELS))
    own, place = curves[level].to_numpy(), z[curves["z_index"]]
    top = int(own.argmax())
    hump = np.where(np.abs(place - place[top]) < APART_MM / 2, own, 0)
    inside = (np.abs(place - place[0]) >= APART_MM / 4) & (np.abs(place - place[-1]) >= APART_MM / 4)
    to = int(rng.choice(np.flatnonzero(inside & (np.abs(place - place[top]) >= APART_MM))))
    copy = np.interp(-(place - place[to]), -(place - place[top]), hump)
    return curves.assign(**{level: np.maximum(own, rng.uniform(0.7, 1) * copy)}), (level,)


def _cut(kind: str, curves: pd.DataFrame, z: np.ndarray, rng: np.random.Generator) -> Planted:
    """The slices end somewhere between the fullest slices of C1 and C7."""
    fullest = curves["z_index"].to_numpy()[curves[list(LEVELS)].to_numpy().argmax(axis=0)]
    place = int(rng.integers(fullest[0] + 1, fullest[-1] + 1))
    first, last = (place, len(z)) if kind == "cut_top" else (0, place)
    inside = curves["z_index"].between(first, last - 1)
    gone = tuple(name for name, at in zip(LEVELS, fullest, strict=True) if not first <= at < last)
    left = curves[inside]
    return Planted(kind, left.assign(z_index=left["z_index"] - first), z[first:last], gone)


def is_found(plant: Planted, flags: Iterable[Flag], outside: Mapping[str, str]) -> bool:
    """Whether the flags say what was planted. outside: level -> why, of `check_levels`.

    Of a cut field: its end is named, every level that is gone but for less than PART is named too, and none whose fullest
    slice is left is said to be outside.
    """
    named: dict[str, set[str]] = {}
    for flag in flags:
        named.setdefault(flag.reason, set()).add(flag.level)
    if plant.kind in REASON:
        return bool(named.get(REASON[plant.kind], set()) & set(plant.levels))
    gone = {level for level in plant.levels if plant.curves[level].max() < PART}
    return "cut_end" in named and gone <= set().union(*named.values()) and set(outside) <= set(plant.levels)
