"""Images of one series that are more than one volume: told by their positions and by what their headers say, and parted
into whole volumes or not at all."""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from preprocess.decoders import LOSSY_SYNTAXES
from preprocess.headers.file_header import FileHeader
from preprocess.headers.values import integer
from preprocess.natural_order import natural_key
from preprocess.series.drift import in_plane_groups
from preprocess.series.interleaving import (
    alternates,
    distinct,
    filled,
    is_regular,
    lie_between,
    raggedness,
    repeats_too_often,
)
from preprocess.series.value_runs import MOST_TURNS, Labels, by_cuts, by_pauses, possible_cuts, possible_turns

LEAST_COMB = 3
WHOLE = 0.5
"""a parting of which no part covers this share of the range parts no volumes, but one volume into pieces"""
RAGGED = 0.5
"""share of steps unlike the next one, beyond which a part is no volume but what is left of several"""
MOST_PARTS = 64


@dataclass(frozen=True)
class Images:
    """Images of one orientation. positions: mm along the normal, (n,) float64."""

    headers: tuple[FileHeader, ...]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.headers)

    def take(self, chosen: Sequence[int]) -> "Images":
        return Images(tuple(self.headers[i] for i in chosen), self.positions[list(chosen)])

    def parts(self, labels: Labels) -> list["Images"]:
        """In the order of the first image of each."""
        members: dict[Hashable, list[int]] = {}
        for i, label in enumerate(labels):
            members.setdefault(label, []).append(i)
        return [self.take(chosen) for chosen in members.values()]


def _number_key(value: float | None) -> tuple:
    return (value is not None, value or 0)


def _number(text: str) -> float | None:
    found = integer(text)
    return None if found is None else float(found)


Read = Callable[[FileHeader], Hashable]
KEYS: dict[str, tuple[Read, Callable]] = {
    "series number": (lambda h: h.marks.series_number, _number_key),
    "lossy compression": (lambda h: h.transfer_syntax in LOSSY_SYNTAXES, _number_key),
    "transfer syntax": (lambda h: h.transfer_syntax, natural_key),
    "tube voltage": (lambda h: h.marks.kvp, _number_key),
    "stack": (lambda h: h.marks.stack, natural_key),
    "temporal position": (lambda h: h.marks.temporal_index, _number_key),
    "acquisition": (lambda h: _number(h.acquisition), _number_key),
    "acquisition time": (lambda h: h.acquisition_time, _number_key),
    "content time": (lambda h: h.content_time, _number_key),
    "image type": (lambda h: "\\".join(h.image_type), natural_key),
    "thickness": (lambda h: h.thickness, _number_key),
    "folder": (lambda h: os.path.dirname(h.path), natural_key),
}
"""What may tell two volumes apart, in the order in which it is asked: how it is read from a header, and how its values
are sorted. The place within the plane comes before the folder. InstanceNumber is none of them: it says how images were
sent."""

IN_PLANE = "in-plane origin"
ABOUT_SENDING = ("transfer syntax", "acquisition", "content time", "image type", "folder")
"""keys that may differ from slice to slice of one volume: detector rows, reconstruction engines, folders dealt in turn"""


def why_mixed(images: Images) -> tuple[str, str] | None:
    """(reason, message) where images cannot be one volume; None where they can."""
    if repeats_too_often(images.positions):
        repeated = len(images) - len(distinct(images.positions))
        message = f"{repeated} of {len(images)} slices have the position of another one; at most one in ten may"
        return "too_many_repeats", message
    if alternates(images.positions, on_grid=_on_grid(images), in_order=_in_order(images)):
        return "two_volumes", "the distances between slices alternate: two volumes are interleaved"
    holes = _leaves_holes(images)
    for name, labels in _all_labels(images):
        if holes and name in ABOUT_SENDING:
            continue
        if any(_interleave(images, few) for few in _few_labels(images, name, labels)):
            return "two_volumes", f"two volumes are interleaved: their images differ in {name}"
    return None


def part(images: Images) -> tuple[list[Images], list[Images]] | None:
    """(the volumes of a mixture, each whole; what is none beside them); None where nothing tells them apart."""
    single = dict(_all_labels(images))
    for name, labels in single.items():
        parted = _volumes(images, images.parts(by_pauses(labels)))
        if parted is not None:
            return parted
        found = (_volumes(images, parts) for parts in _candidates(images, name, labels))
        parts = _best([volumes for volumes in found if volumes is not None])
        if parts is not None:
            return parts
    few = {name: labels for name, labels in single.items() if 1 < len(set(labels)) <= len(images) / 2}
    for one, other in combinations(few.values(), 2):
        parts = _volumes(images, images.parts(list(zip(one, other, strict=True))))
        if parts is not None:
            return parts
    return None


def _volumes(images: Images, parts: list[Images]) -> tuple[list[Images], list[Images]] | None:
    """The parting, where it counts: each part is a volume, no mixture and not just a piece of one. What is none is set
    aside: images at one single place (a bolus that is watched, a stray), and what is left of a volume."""
    if not 1 < len(parts) <= MOST_PARTS:
        return None
    volumes = [p for p in parts if _is_whole(p)]
    if not volumes or max(np.ptp(p.positions) for p in volumes) < WHOLE * np.ptp(images.positions):
        return None
    several = [p for p in parts if len(distinct(p.positions)) > 1]
    return (volumes, [p for p in parts if not _is_whole(p)]) if all(why_mixed(p) is None for p in several) else None


def _is_whole(images: Images) -> bool:
    several = len(distinct(images.positions)) > 1
    return several and raggedness(images.positions) <= RAGGED and filled(images.positions) >= WHOLE


def _best(partings: list[tuple[list[Images], list[Images]]]) -> tuple[list[Images], list[Images]] | None:
    """The one of the fewest parts, of these the one with the most regular ones; None where two differ in neither, since
    then it is unknown which slice belongs where."""
    if not partings:
        return None
    ranked = [
        (len(volumes) + len(aside), sum(not is_regular(p.positions) for p in volumes)) for volumes, aside in partings
    ]
    best = [parting for parting, rank in zip(partings, ranked, strict=True) if rank == min(ranked)]
    members = {frozenset(frozenset(map(id, p.headers)) for p in volumes) for volumes, _ in best}
    return best[0] if len(members) == 1 else None


def _all_labels(images: Images) -> Iterator[tuple[str, Labels]]:
    """Every key that has more than one value here."""
    for name, (read, _) in KEYS.items():
        if name == "folder":
            yield from _more_than_one(IN_PLANE, in_plane_groups(images.headers, images.positions))
        yield from _more_than_one(name, [read(header) for header in images.headers])


def _more_than_one(name: str, labels: Labels) -> Iterator[tuple[str, Labels]]:
    if len(set(labels)) > 1:
        yield name, labels


def _candidates(images: Images, name: str, labels: Labels) -> Iterator[list[Images]]:
    """By the values as they are, and by runs of neighbouring values."""
    if len(set(labels)) <= len(images) / 2:
        yield images.parts(labels)
    if name == IN_PLANE or len(set(labels)) < 4:
        return
    order = _in_order_of(name, labels)
    for cuts in possible_cuts([labels[i] for i in order], images.positions[order]):
        yield images.parts(by_cuts(order, cuts))


def _in_order_of(name: str, labels: Labels) -> list[int]:
    return sorted(range(len(labels)), key=lambda i: KEYS[name][1](labels[i]))


def _few_labels(images: Images, name: str, labels: Labels) -> Iterator[Labels]:
    """The labels where they are few, and their runs between long pauses and between turns of the scan."""
    if len(set(labels)) <= len(images) / 2:
        yield labels
    yield by_pauses(labels)
    if name != IN_PLANE:
        order = _in_order_of(name, labels)
        changes = [i for i in range(1, len(order)) if labels[order[i]] != labels[order[i - 1]]]
        for cuts in possible_turns(changes, images.positions[order]):
            if len(cuts) <= MOST_TURNS:
                yield by_cuts(order, cuts)


def _interleave(images: Images, labels: Labels) -> bool:
    """Whether the images of one of few labels are a regular comb, and those of another one lie between its slices. Where
    they only fill its gaps they follow one another."""
    if not 1 < len(set(labels)) <= MOST_PARTS:
        return False
    parts = [np.sort(p.positions) for p in images.parts(labels) if len(p) >= LEAST_COMB]
    whole = WHOLE * np.ptp(images.positions)
    combs = [p for p in parts if np.ptp(p) >= whole and is_regular(p)]
    return any(lie_between(other, comb) for comb in combs for other in parts if other is not comb)


def _leaves_holes(images: Images) -> bool:
    """Whether all images together are one comb, numbered in its order, of slices too thin to make two: each second one
    left out, the others would not touch."""
    thickness = [header.thickness for header in images.headers if header.thickness]
    steps = np.diff(np.sort(images.positions))
    if not thickness or len(steps) < LEAST_COMB or not is_regular(images.positions):
        return False
    return float(np.median(thickness)) < 1.5 * float(np.median(steps)) and _in_order(images)


def _on_grid(images: Images) -> bool:
    """Whether all coordinates that differ are whole tenths of a millimetre."""
    tenths = 10 * np.array([header.position for header in images.headers])
    moves = np.ptp(tenths, axis=0) > 1e-3
    return bool((np.abs(tenths - np.rint(tenths))[:, moves] < 1e-3).all())


def _in_order(images: Images) -> bool:
    """Whether the images are numbered in the order of their positions, up or down."""
    numbers = [header.instance_number for header in images.headers]
    if None in numbers:
        return False
    steps = np.diff(np.array(numbers, float)[np.argsort(images.positions, kind="stable")])
    return bool((steps > 0).all() or (steps < 0).all())
