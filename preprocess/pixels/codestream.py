"""Guards on one compressed frame, before any decoder sees it.

Decoders believe the frame: one that claims 30000 x 30000 pixels costs gigabytes and raises nothing, and one that was
cut decodes into a wrong image in silence. A few bytes tell both.
"""

import struct

from pydicom import uid

from cache_schema.errors import StudyRefused

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
J2K_START = b"\xff\x4f\xff\x51"

_START_OF_FRAME: dict[str, tuple[int, ...]] = {
    uid.JPEGBaseline8Bit: (0xC0,),
    uid.JPEGExtended12Bit: (0xC0, 0xC1),
    uid.JPEGLossless: (0xC3,),
    uid.JPEGLosslessSV1: (0xC3,),
    uid.JPEGLSLossless: (0xF7,),
    uid.JPEGLSNearLossless: (0xF7,),
}
"""Transfer syntax -> start-of-frame markers it may use: baseline, extended, lossless, JPEG-LS."""

_ALL_STARTS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_frame(frame: bytes, syntax: str, rows: int, columns: int, bits_allocated: int) -> None:
    """Raise StudyRefused (frame_header, frame_size, truncated_frame) unless the frame is what its DICOM header
    says."""
    if syntax == uid.RLELossless:
        _check_rle(frame, bits_allocated // 8)
        return
    size = _size(frame, syntax)
    if size is None:
        raise StudyRefused("frame_header", "a compressed frame has no header of its transfer syntax")
    precision, *shape = size
    if shape != [rows, columns, 1] or precision > bits_allocated:
        frame_rows, frame_columns, components = shape
        raise StudyRefused(
            "frame_size",
            f"a compressed frame is {frame_rows} x {frame_columns} x {components} in {precision} bits, "
            f"its DICOM header says {rows} x {columns} x 1 in {bits_allocated}",
        )
    # one byte pads to even length, by some writers FF or a blank; others pad more
    if not frame[-64:].rstrip(b"\0 \xff").endswith(JPEG_END):
        raise StudyRefused("truncated_frame", "a compressed frame does not end with its end-of-image marker")


def jpeg_precision(frame: bytes, syntax: str) -> int | None:
    """Bits of a sample by the frame's own header; None of what is no JPEG, JPEG Lossless or JPEG-LS frame. Its samples
    have no sign: JPEG knows none."""
    size = _jpeg_size(frame, _START_OF_FRAME[syntax]) if syntax in _START_OF_FRAME else None
    return size and size[0]


def _size(frame: bytes, syntax: str) -> tuple[int, int, int, int] | None:
    return _jpeg_size(frame, _START_OF_FRAME[syntax]) if syntax in _START_OF_FRAME else _j2k_size(frame)


def _jpeg_size(frame: bytes, starts: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """(precision, rows, columns, components) of the start-of-frame segment (ISO 10918-1 B.2.2), if it is one of
    `starts`."""
    if frame[:2] != JPEG_START:
        return None
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        elif marker in _ALL_STARTS:
            if marker not in starts or at + 10 > len(frame):
                return None
            return struct.unpack_from(">BHHB", frame, at + 4)
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _j2k_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """The same of a JPEG 2000 codestream's SIZ segment (ISO 15444-1 A.5.1)."""
    if frame[:4] != J2K_START or len(frame) < 45:
        return None
    right, bottom, left, top = struct.unpack_from(">4L", frame, 8)
    components, depth, step_x, step_y = struct.unpack_from(">HBBB", frame, 40)
    if (step_x, step_y) != (1, 1):
        return None
    return (depth & 0x7F) + 1, bottom - top, right - left, components


def _check_rle(frame: bytes, segments: int) -> None:
    """The RLE header: one segment per byte of a pixel, the first after 64 bytes, all within the frame (DICOM PS3.5
    G.5)."""
    offsets = struct.unpack_from("<16L", frame) if len(frame) >= 64 else (0,) * 16
    used = offsets[1 : segments + 1]
    if offsets[0] != segments or used[0] != 64 or list(used) != sorted(set(used)):
        raise StudyRefused("frame_header", "an RLE frame has no header of its transfer syntax")
    if used[-1] >= len(frame):
        raise StudyRefused("truncated_frame", "an RLE frame ends before its last segment")
