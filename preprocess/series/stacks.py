"""Which of a study's images are the volume to keep: images fall into stacks, and one stack is chosen.

A stack is what could be stacked into one volume: one series, one frame of reference, one kernel, localizers, originals or
derived images; and where those are still a mixture, one of the volumes into which their headers part it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from preprocess.decoders import LOSSY_SYNTAXES
from preprocess.headers.file_header import FileHeader, known
from preprocess.series.geometry import MAX_DEGREES_FROM_AXIAL, degrees_from_axial, slice_normal, unit_directions
from preprocess.series.interleaving import distinct, lie_between
from preprocess.series.mixtures import Images, part, why_mixed

LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
LEAST_SERIES = 3
NAMED_KERNELS = (
    *(("ULTRA", 95), ("EDGE", 90), ("BONEPLUS", 80), ("BONE", 70), ("LUNG", 60), ("SHARP", 60)),
    *(("DETAIL", 50), ("CHST", 45), ("STANDARD", 40), ("STD", 40), ("SMOOTH", 10), ("SOFT", 20)),
)
"""GE's and others' kernel names by sharpness, on the scale of Siemens' numbers (B10 smooth to B90 sharp)."""


@dataclass(frozen=True)
class Stack:
    """Images that could be one volume. mixed: (reason, message) where they are none, and nothing parts them. `rank` orders
    stacks of like coverage, the best first."""

    headers: tuple[FileHeader, ...]
    mixed: tuple[str, str] | None = None

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
    def is_hu(self) -> bool:
        """False where every image says that its values are something else."""
        return not all(h.has_problem("not_hu") for h in self.headers)

    @cached_property
    def is_lossy(self) -> bool:
        return any(h.transfer_syntax in LOSSY_SYNTAXES for h in self.headers)

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
        return (*self.quality, *self.turn)

    @property
    def quality(self) -> tuple:
        return self.is_derived, self.thickness, -self.sharpness, -len(self.headers), self.is_lossy

    @property
    def turn(self) -> tuple:
        """Where quality decides nothing: series number, time, temporal position; names last."""
        times = [h.acquisition_time for h in self.headers], [h.content_time for h in self.headers]
        return (
            _lowest(h.marks.series_number for h in self.headers),
            *map(_lowest, times),
            _lowest(h.marks.temporal_index for h in self.headers),
            self.series_uid,
            self.headers[0].path,
        )


def _lowest(values: Iterable[float | None]) -> float:
    return min((value for value in values if value is not None), default=np.inf)


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


def each_has_its_own_series(headers: Sequence[FileHeader]) -> bool:
    """Whether every CT image, of three at least, has a series UID of its own, as some anonymisers leave it."""
    images = [h for h in headers if h.modality in ("", "CT") and not is_localizer(h)]
    files = {(h.series_uid, h.path) for h in images}
    return len(files) >= LEAST_SERIES and len({uid for uid, _ in files}) == len(files)


def split_into_groups(headers: Sequence[FileHeader], *, by_series: bool = True) -> list[list[FileHeader]]:
    """What never belongs together is parted: series, modality, localizers, kernel, derived images and frame of reference.
    In the order of their first files. by_series: False where series UIDs say nothing."""
    groups: dict = {}
    for header in headers:
        series = header.series_uid if by_series else ""
        key = (series, header.modality, is_localizer(header), header.kernel, is_derived(header))
        groups.setdefault(key, []).append(header)
    return [part for group in groups.values() for part in _by_frame_of_reference(group)]


def _by_frame_of_reference(headers: list[FileHeader]) -> list[list[FileHeader]]:
    """Frames of reference of one place only, as where every slice has its own, say nothing. Images without one join the
    only one that there is, where they fill its gaps or continue it."""
    places: dict[str, set] = {}
    for header in headers:
        places.setdefault(header.marks.frame_of_reference, set()).add(header.position)
    parts: dict[str | None, list[FileHeader]] = {}
    for header in headers:
        frame = header.marks.frame_of_reference
        parts.setdefault(frame if len(places[frame]) > 1 else None, []).append(header)
    if len(parts) == 2 and "" in parts and _follow(*parts.values()):
        return [headers]
    return list(parts.values())


def _follow(some: list[FileHeader], others: list[FileHeader]) -> bool:
    """Whether two sets of images only fill each other's gaps, or continue each other."""
    one, two = (np.unique(places_along_normal(members)) for members in (some, others))
    shared = len(distinct(np.concatenate([one, two]))) < len(one) + len(two)
    return min(len(one), len(two)) > 1 and not shared and not lie_between(one, two) and not lie_between(two, one)


def stacks_of(headers: Sequence[FileHeader]) -> list[Stack]:
    """The volumes of a group without copies, or one stack that is `mixed`.

    Images without geometry cannot be placed: each stack has them, and will be refused for them.
    """
    placed = [h for h in headers if _has_geometry(h)]
    if len(placed) < 2:
        return [Stack(tuple(headers))]
    orientation = Counter(h.orientation for h in placed).most_common(1)[0][0]
    row, column = known(unit_directions(orientation))
    images = Images(tuple(placed), np.array([h.position for h in placed]) @ slice_normal(row, column))
    mixed = why_mixed(images)
    if mixed is None:
        return [Stack(tuple(headers))]
    strays = [h for h in headers if not _has_geometry(h)]
    parts = part(images)
    if parts is None:
        return [Stack(tuple(headers), mixed)]
    volumes, aside = parts
    rest = ("two_volumes", "the rest of a volume beside a whole one")
    return [*(Stack((*found.headers, *strays)) for found in volumes), *(Stack(found.headers, rest) for found in aside)]


def _has_geometry(header: FileHeader) -> bool:
    known = header.position is not None and header.orientation is not None and header.pixel_spacing is not None
    return known and unit_directions(header.orientation) is not None


def choose_stack(stacks: Sequence[Stack]) -> Stack | None:
    """The axial stack to keep: of those that cover at least half as much as the longest, whole ones before mixtures, then
    ORIGINAL before derived, the thinnest, the sharpest kernel, the most images, lossless before lossy; where they are
    equal the lower series number, the earlier one, and file names last. None where no stack is axial."""
    axial = [stack for stack in stacks if stack.is_axial]
    if not axial:
        return None
    longest = max(stack.coverage for stack in axial)
    long = [stack for stack in axial if stack.coverage >= longest / 2]
    return min(long, key=lambda stack: (stack.mixed is not None, stack.rank))


def why_left_out(stack: Stack, chosen: Stack) -> str:
    """One phrase without header text for the report."""
    if not stack.is_axial:
        return "not axial"
    if stack.coverage < chosen.coverage / 2:
        return "it covers less than half as much"
    if stack.mixed:
        return "not a whole volume, or several that no header field separates"
    if stack.is_derived and not chosen.is_derived:
        return "derived images beside originals"
    if stack.thickness > chosen.thickness:
        return "thicker slices"
    if stack.sharpness < chosen.sharpness:
        return "a softer kernel"
    if stack.is_lossy and not chosen.is_lossy:
        return "lossy compression"
    return "no better than the one kept"
