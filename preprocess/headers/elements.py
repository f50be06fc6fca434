"""The header of an ordinary DICOM file, walked in memory.

Ordinary is little endian, elements in order and of known length, one frame, pixels last. Everything else, and every
broken file, gives None here and is read by pydicom, which takes several times as long, with `specific_tags` too: it
still parses every element (`python -m benchmarks.headers` prints both ratios).
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

from pydicom.uid import ImplicitVRLittleEndian

HEAD_BYTES = 1 << 14
"""CT headers take one to ten thousand bytes; longer ones are read by pydicom"""

META_BEGIN = 132
"""after the preamble and DICM (PS3.10 7.1)"""
MEDIA_STORAGE_CLASS, TRANSFER_SYNTAX = 0x00020002, 0x00020010
NUMBER_OF_FRAMES, PIXEL_DATA = 0x00280008, 0x7FE00010
PIXEL_DATA_PARTS = (0x7FE0, 0x0010)
GROUP_OF_FRAMES = 0x5200
UNDEFINED_LENGTH = 0xFFFFFFFF

_VRS = b"AEASATCSDADSDTFDFLISLOLTPNSHSLSSSTTMUIULUS"
_SHORT_VRS = frozenset(_VRS[at : at + 2] for at in range(0, len(_VRS), 2))
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""two reserved bytes and a length of four (PS3.5 7.1.2)"""

_TAG = Struct("<HH").unpack_from
_SHORT = Struct("<2sH").unpack_from
_LENGTH = Struct("<L").unpack_from


@dataclass(frozen=True)
class Elements:
    """values: tag -> bytes as they lie in the file, of the tags asked for. pixels: where their value begins, its length
    (None where undefined) and its VR."""

    syntax: str
    storage_class: str
    values: dict[int, bytes]
    pixels: tuple[int, int | None, str]


def walk(head: bytes, tags: Container[int], syntaxes: Container[str]) -> Elements | None:
    """`head`: the first bytes of a file, preamble included. None unless it is an ordinary file in one of `syntaxes`
    (little-endian ones) whose pixels begin within `head`."""
    try:
        meta, at = _walk(head, META_BEGIN, _explicit, last=0x0002FFFF, tags=(MEDIA_STORAGE_CLASS, TRANSFER_SYNTAX))
        names = (meta.get(name, b"").strip(b" \0").decode("ascii") for name in (TRANSFER_SYNTAX, MEDIA_STORAGE_CLASS))
        syntax, storage_class = names
        if syntax not in syntaxes:
            return None
        element = _implicit if syntax == ImplicitVRLittleEndian else _explicit
        values, at = _walk(head, at, element, last=PIXEL_DATA - 1, tags=tags)
        begin, length = element(head, at)
    except (_Unusual, StructError, UnicodeDecodeError):
        return None
    if _TAG(head, at) != PIXEL_DATA_PARTS:
        return None
    vr = "OB" if element is _explicit and head[at + 4 : at + 6] == b"OB" else "OW"
    return Elements(syntax, storage_class, values, (begin, None if length == UNDEFINED_LENGTH else length, vr))


def _walk(head: bytes, at: int, element: Callable, *, last: int, tags: Container[int]) -> tuple[dict[int, bytes], int]:
    """Values of the elements from `at` on up to tag `last`, and where the first beyond it begins."""
    values: dict[int, bytes] = {}
    before, end = 0, len(head)
    while True:
        group, number = _TAG(head, at)
        tag = group << 16 | number
        if tag > last:
            return values, at
        begin, length = element(head, at)
        if tag <= before or begin + length > end or tag == NUMBER_OF_FRAMES or tag >> 16 == GROUP_OF_FRAMES:
            raise _Unusual
        before, at = tag, begin + length
        if tag in tags:
            values[tag] = head[begin:at]


def _explicit(head: bytes, at: int) -> tuple[int, int]:
    """Where the value of the element at `at` begins, and its length."""
    vr, length = _SHORT(head, at + 4)
    if vr in _SHORT_VRS:
        return at + 8, length
    if vr not in _LONG_VRS:
        raise _Unusual
    return at + 12, _LENGTH(head, at + 8)[0]


def _implicit(head: bytes, at: int) -> tuple[int, int]:
    if head[at + 4 : at + 6].isalpha():  # may be a VR
        raise _Unusual
    return at + 8, _LENGTH(head, at + 4)[0]


class _Unusual(Exception):
    pass
