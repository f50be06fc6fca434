"""Which of a study's images are the volume to keep: images fall into stacks, and one stack is chosen.

A stack is what could be stacked into one volume: one series, one kernel, localizers, originals or derived images, and,
where positions repeat, one thickness and one acquisition. Two kernels at the same positions are never interleaved.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from preprocess.geometry import MAX_DEGREES_FROM_AXIAL, degrees_from_axial, slice_normal, unit_directions
from preprocess.header import FileHeader

SAME_POSITION = 0.01
"""mm along the normal: thinner than any reconstruction increment, coarser than the rounding of decimal strings."""

LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
NAMED_KERNELS = (
    ("ULTRA", 95),
    ("EDGE", 90),
    ("BONEPLUS", 80),
    ("BONE", 70),
    ("LUNG", 60),
    ("SHARP", 60),
    ("DETAIL", 50),
    ("CHST", 45),
    ("STANDARD", 40),
    ("STD", 40),
    ("SMOOTH", 10),
    ("SOFT", 20),
)
"""GE's and others' kernel names by sharpness, on the scale of Siemens' numbers (B10 smooth to B90 sharp)."""


@dataclass(frozen=True)
class Stack:
    """Images that could be one volume. `rank` orders stacks of like coverage, the best first."""

    headers: tuple[FileHeader, ...]

    @property
    def series_uid(self) -> str:
        return self.headers[0].series_uid

    @cached_property
    def is_axial(self) -> bool:
        """True where at least half of the images are; a stack with strays is judged, and refused, as a whole."""
        axial = [
            h.orientation is not None and degrees_from_axial(h.orientation) <= MAX_DEGREES_FROM_AXIAL
            for h in self.headers
        ]
        return 2 * sum(axial) >= len(axial)

    @property
    def is_derived(self) -> bool:
        return is_derived(self.headers[0])

    @cached_property
    def coverage(self) -> float:
        """mm from the first to the last slice along the normal, one usual distance included."""
        places = np.unique(places_along_normal(self.headers))
        return float(np.ptp(places) + np.median(np.diff(places))) if len(places) > 1 else 0.0

    @property
    def thickness(self) -> float:
        known = [h.thickness for h in self.headers if h.thickness]
        return float(np.median(known)) if known else np.inf

    @property
    def sharpness(self) -> float:
        return kernel_sharpness(self.headers[0].kernel)

    @property
    def rank(self) -> tuple:
        return (
            self.is_derived,
            self.thickness,
            -self.sharpness,
            -len(self.headers),
            self.series_uid,
            self.headers[0].path,
        )


def is_localizer(header: FileHeader) -> bool:
    return not LOCALIZER_WORDS.isdisjoint(header.image_type)


def is_derived(header: FileHeader) -> bool:
    """Reformats, projections and the like. An absent ImageType counts as ORIGINAL."""
    return header.image_type[:1] == ("DERIVED",)


def kernel_sharpness(kernel: str) -> float:
    """Rough order of reconstruction kernels within a vendor, 0 to 100; unknown and absent ones lie at the soft
    end."""
    kernel = kernel.split("\\")[0].upper().replace(" ", "")
    for name, sharpness in NAMED_KERNELS:
        if kernel.startswith(name):
            return sharpness
    number = re.search(r"\d+", kernel)
    if number:
        return min(float(number.group()), 100.0)
    # Philips: one letter, A smooth to E sharp
    return 10.0 * (ord(kernel) - ord("A") + 1) if re.fullmatch(r"[A-F]", kernel) else 0.0


def places_along_normal(headers: Sequence[FileHeader]) -> np.ndarray:
    """Position of every image along the first orientation's normal, mm; images without geometry are left out."""
    known = [h for h in headers if h.position is not None and h.orientation is not None]
    directions = next((d for d in (unit_directions(h.orientation) for h in known) if d is not None), None)
    if directions is None:
        return np.zeros(0)
    return np.array([h.position for h in known]) @ slice_normal(*directions)


def split_into_stacks(headers: Sequence[FileHeader]) -> list[Stack]:
    """Stacks of the images, in the order of their first files."""
    groups = _group(headers, lambda h: (h.series_uid, h.modality, is_localizer(h), h.kernel, is_derived(h)))
    stacks = [part for group in groups for part in _split_repeats(group)]
    return [Stack(tuple(stack)) for stack in stacks]


def _group(headers: Sequence[FileHeader], key: Callable) -> list[list[FileHeader]]:
    groups: dict = {}
    for header in headers:
        groups.setdefault(key(header), []).append(header)
    return list(groups.values())


def _split_repeats(headers: list[FileHeader]) -> list[list[FileHeader]]:
    """Where positions repeat, and thickness or acquisition tells the repeats apart, those are stacks of their own."""
    unique = list({(h.sop_uid or h.path, h.frame, h.position): h for h in headers}.values())
    if not _repeats(unique):
        return [headers]
    for key in (lambda h: h.thickness, lambda h: h.acquisition, lambda h: (h.thickness, h.acquisition)):
        parts = _group(unique, key)
        if len(parts) > 1 and not any(map(_repeats, parts)):
            return _group(headers, key)
    return [headers]


def _repeats(headers: Sequence[FileHeader]) -> bool:
    places = np.sort(places_along_normal(headers))
    return bool((np.diff(places) < SAME_POSITION).any())


def choose_stack(stacks: Sequence[Stack]) -> Stack | None:
    """The axial stack to keep: of those that cover at least half as much as the longest, ORIGINAL before derived,
    then the thinnest, then the sharpest kernel, then the most images. None where no stack is axial."""
    axial = [stack for stack in stacks if stack.is_axial]
    if not axial:
        return None
    longest = max(stack.coverage for stack in axial)
    return min((stack for stack in axial if stack.coverage >= longest / 2), key=lambda stack: stack.rank)


def why_left_out(stack: Stack, chosen: Stack) -> str:
    """One phrase without header text for the report."""
    if not stack.is_axial:
        return "not axial"
    if stack.coverage < chosen.coverage / 2:
        return "it covers less than half as much"
    if stack.is_derived and not chosen.is_derived:
        return "derived images beside originals"
    if stack.thickness > chosen.thickness:
        return "thicker slices"
    if stack.sharpness < chosen.sharpness:
        return "a softer kernel"
    return "no better than the one kept"
