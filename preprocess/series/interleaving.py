"""Whether positions of slices along their normal look like one scan, or like two interleaved ones.

All positions are mm, ascending.
"""

import numpy as np

SAME_POSITION = 0.01
"""mm along the normal: thinner than any reconstruction increment, coarser than the rounding of decimal strings"""
REPEATS = 0.1
"""more than this share of places with a second slice is no accident of sending"""
ALTERNATION = 0.2
"""neighbouring steps that differ by more than this share of the usual one alternate"""
EVEN = 0.05
"""steps that differ by less than this share are one step"""
ROUNDED = 0.1 + 1e-6
"""mm: what writing positions with one decimal adds to a step, or takes from it"""
FEW_STEPS, CHANGES = 8, 0.3
"""of so many steps of a regular comb this share may be unlike the next one: a missing slice makes two changes"""
LEAST_BETWEEN = 3
"""slices of one volume between those of another; fewer may be strays"""
WINDOW = 5
"""steps of three slices of each of two combs"""
IRREGULAR = 0.6
"""where more than this share of neighbouring steps differ, no comb with gaps is left"""


def distinct(positions: np.ndarray) -> np.ndarray:
    """Every place once."""
    positions = np.sort(positions)
    return positions[np.concatenate([[True], np.diff(positions) >= SAME_POSITION])] if len(positions) else positions


def repeats_too_often(positions: np.ndarray) -> bool:
    """Whether more than a tenth of the places hold a second slice."""
    places = len(distinct(positions))
    return len(positions) - places > REPEATS * places


def is_regular(positions: np.ndarray) -> bool:
    """A comb of at least three places, each once, of one step or of several that take over from one another: nearly all
    steps are like a neighbour's. A few missing slices are nothing against it."""
    steps = np.diff(np.sort(positions))
    if len(steps) < 2 or steps.min() < SAME_POSITION:
        return False
    return raggedness(positions) <= (0 if len(steps) < FEW_STEPS else CHANGES)


def raggedness(positions: np.ndarray) -> float:
    """Share of the steps between places that are unlike the next one; 0 where there are fewer than two."""
    steps = np.diff(distinct(positions))
    if len(steps) < 2:
        return 0.0
    return float(np.mean(np.abs(np.diff(steps)) > np.maximum(ROUNDED, EVEN * (steps[:-1] + steps[1:]) / 2)))


def filled(positions: np.ndarray) -> float:
    """Share of the range that is within three usual steps of a slice before it."""
    steps = np.diff(distinct(positions))
    return float(np.minimum(steps, 3 * np.median(steps)).sum() / steps.sum()) if len(steps) else 1.0


def lie_between(some: np.ndarray, comb: np.ndarray) -> bool:
    """Whether three places at least lie within the usual steps of a comb, and not in its gaps or beyond its ends."""
    steps = np.diff(comb)
    same = np.abs(np.diff(steps)) <= np.maximum(ROUNDED, EVEN * (steps[:-1] + steps[1:]) / 2)
    usual = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    at = np.searchsorted(comb, some + SAME_POSITION, side="right") - 1
    inside = at[(at >= 0) & (at < len(steps))]
    return bool(np.count_nonzero(usual[inside]) >= LEAST_BETWEEN)


def alternates(positions: np.ndarray, *, on_grid: bool, in_order: bool) -> bool:
    """Whether the steps between places change back and forth, as where two combs lie in each other at any offset but half
    a step.

    Gaps and changes of spacing do not alternate, nor do positions rounded to 0.1 mm. on_grid: whether all coordinates are
    whole tenths of a millimetre. in_order: whether the images are numbered in the order of their positions, so that
    rounding alone may explain what alternates by little. Two combs at half a step look like one.
    """
    places = distinct(positions)
    steps = np.diff(places)
    if len(steps) < WINDOW:
        return _few_alternate(steps)
    for first in np.flatnonzero(_two_combs(steps, on_grid)):
        rounded = on_grid and in_order and _is_one_rounded_comb(places[first : first + WINDOW + 1])
        if not rounded and not _are_gaps(steps, steps[first : first + WINDOW], on_grid):
            return True
    changes = np.abs(np.diff(steps)) > np.maximum(
        ALTERNATION * (steps[:-1] + steps[1:]) / 2, 2 * ROUNDED if on_grid else 2 * SAME_POSITION
    )
    irregular = len(steps) >= 2 * WINDOW and np.count_nonzero(changes) > IRREGULAR * len(changes)
    return bool(irregular and not _are_gaps(steps, steps, on_grid))


def _two_combs(steps: np.ndarray, on_grid: bool) -> np.ndarray:
    """At which steps five begin of which every second one is the same: two combs of one step, at another offset than
    half."""
    windows = np.lib.stride_tricks.sliding_window_view(steps, WINDOW)
    pairs = windows[:, :-1] + windows[:, 1:]
    near = np.maximum(EVEN * pairs.mean(axis=1), ROUNDED if on_grid else 2 * SAME_POSITION)
    apart = np.abs(windows[:, ::2].mean(axis=1) - windows[:, 1::2].mean(axis=1))
    usual = (windows[:, ::2].mean(axis=1) + windows[:, 1::2].mean(axis=1)) / 2
    back_and_forth = (np.diff(np.sign(np.diff(windows, axis=1)), axis=1) != 0).all(axis=1)
    return (np.ptp(pairs, axis=1) <= near) & (apart > ALTERNATION * (1 + 1e-6) * usual) & back_and_forth


def _few_alternate(steps: np.ndarray) -> bool:
    """Of two to four steps: every second one the same, the others different, and no gaps."""
    if len(steps) < 3 or _are_multiples(steps, float(steps.min()), _tolerance(steps.min())):
        return False
    odd, even = steps[::2], steps[1::2]
    same = np.ptp(odd) <= _tolerance(odd.mean()) and np.ptp(even) <= _tolerance(even.mean())
    return bool(same and abs(odd.mean() - even.mean()) > max(ROUNDED, ALTERNATION * steps.mean()))


def _is_one_rounded_comb(places: np.ndarray) -> bool:
    """Whether places lie on a comb of one step but for the rounding to 0.1 mm."""
    number = np.arange(len(places))
    off = places - np.polyval(np.polyfit(number, places, 1), number)
    return float(np.ptp(off)) <= ROUNDED + 3 * SAME_POSITION


def _are_gaps(steps: np.ndarray, some: np.ndarray, on_grid: bool) -> bool:
    """Whether some of the steps are made by missing slices: all are multiples of the smallest, and that is the distance of
    three neighbours somewhere. In two combs of one step it never is: there the distances of three neighbours differ."""
    base = float(some.min())
    near = max(_tolerance(base), min(ROUNDED, ALTERNATION * base) if on_grid else 0.0)
    usual = np.abs(steps - base) <= near
    return bool((usual[:-1] & usual[1:]).any()) and _are_multiples(some, base, 2 * near if on_grid else near)


def _are_multiples(steps: np.ndarray, base: float, near: float) -> bool:
    whole = np.maximum(1, np.rint(steps / base))
    return bool((np.abs(steps - whole * base) <= near).all())


def _tolerance(step: float) -> float:
    return max(2 * SAME_POSITION, EVEN * step)
