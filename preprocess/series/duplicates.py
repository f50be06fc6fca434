"""Images that are there more than once, byte for byte: the same pixels at the same place."""

from collections import Counter
from collections.abc import Hashable, Sequence

from cache_schema.errors import StudyRefused
from preprocess.headers.file_header import FileHeader
from preprocess.headers.frames import frame_digest
from preprocess.series.mixtures import KEYS


def without_copies(headers: Sequence[FileHeader]) -> tuple[list[FileHeader], list[FileHeader]]:
    """(each image once, the copies left out), both in the order of `headers`.

    Pixels are read where geometry, size and rescaling are equal, which is rare. Of copies those stay that are most like
    the other images, so that what stays is one series and not half of each of two.
    """
    alike: dict[Hashable, list[FileHeader]] = {}
    for header in headers:
        alike.setdefault(_what_copies_share(header), []).append(header)
    same: dict[Hashable, list[FileHeader]] = {}
    for key, members in alike.items():
        for header in members:
            pixels = _digest(header) if len(members) > 1 else None
            same.setdefault((key, pixels), []).append(header)
    if len(same) == len(headers):
        return list(headers), []
    likeness = Likeness(headers)
    kept = {id(min(members, key=likeness)) for members in same.values()}
    return [h for h in headers if id(h) in kept], [h for h in headers if id(h) not in kept]


def _what_copies_share(h: FileHeader) -> Hashable:
    encoding = (h.transfer_syntax, h.bits_allocated, h.bits_stored, h.pixel_representation, h.photometric)
    geometry = (h.position, h.orientation, h.pixel_spacing, h.rows, h.columns)
    return geometry, encoding, h.slope, h.intercept, h.marks.padding, bool(h.problems)


def _digest(header: FileHeader) -> Hashable:
    """Of the compressed pixels; an image that cannot be read is like no other."""
    try:
        return frame_digest(header)
    except StudyRefused:
        return header.path, header.frame


def missing_copies(stack: Sequence[FileHeader], copies: Sequence[FileHeader]) -> list[FileHeader]:
    """Of the copies left out those that a stack needs: at places where it has no image, and as its own in all that few of
    its images differ in. Two volumes may share images that show nothing."""
    places = {header.position for header in stack}
    few = []
    for read, _ in KEYS.values():
        values = {read(h) for h in stack}
        if len(values) <= len(stack) / 2:
            few.append((read, values))
    found: dict[Hashable, FileHeader] = {}
    for header in copies:
        same_series = header.series_uid == stack[0].series_uid and header.kernel == stack[0].kernel
        if same_series and header.position not in places and all(read(header) in values for read, values in few):
            found.setdefault(header.position, header)
    return list(found.values())


class Likeness:
    """Sorts images that have what most others have before those that do not; called with one of them."""

    def __init__(self, headers: Sequence[FileHeader]):
        self._counts = [Counter(read(h) for h in headers) for read, _ in KEYS.values()]
        self._patients = Counter(h.marks.patient for h in headers)
        self._order = {id(h): i for i, h in enumerate(headers)}

    def common(self, header: FileHeader) -> tuple[int, ...]:
        """How many have each of its values, negative."""
        return tuple(-counts[read(header)] for (read, _), counts in zip(KEYS.values(), self._counts, strict=True))

    def __call__(self, header: FileHeader) -> tuple:
        found = [-self._patients[header.marks.patient]]
        for (read, sort_key), counts in zip(KEYS.values(), self._counts, strict=True):
            found += [-counts[read(header)], sort_key(read(header))]
        return *found, self._order[id(header)]
