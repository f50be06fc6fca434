"""The bytes of one frame as they lie in its file, compressed or not, and of the whole file."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO

import google_crc32c
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets

from cache_schema.errors import StudyRefused
from preprocess.decoders import NATIVE_SYNTAXES
from preprocess.headers.file_header import FileHeader
from preprocess.headers.opened import FileState, Opening, opened, opened_copy, opened_in_turn

_BLOCK = 1 << 20


def frame_in(source: BinaryIO, header: FileHeader) -> bytes:
    """The bytes of one frame of an open file. Raises StudyRefused where frames cannot be told apart."""
    if header.transfer_syntax in NATIVE_SYNTAXES:
        length = frame_bytes(header)
        source.seek(header.pixel_offset + header.frame * length)
        return source.read(length)
    source.seek(header.pixel_offset)
    try:
        offsets = parse_basic_offsets(source)
        if header.frames == 1:
            return b"".join(generate_fragments(source))
        if offsets and (offsets[0] != 0 or offsets != sorted(set(offsets)) or len(offsets) != header.frames):
            raise StudyRefused("offset_table", "the offset table does not follow the order of the frames")
        source.seek(header.pixel_offset)
        return get_frame(source, header.frame, number_of_frames=header.frames)
    except StudyRefused:
        raise
    except Exception as error:  # broken encapsulation ends in ValueError, struct.error, StopIteration and others
        raise StudyRefused(
            "frame_header", f"the compressed frames cannot be separated ({type(error).__name__})"
        ) from None


def frame_bytes(header: FileHeader) -> int:
    """Of one uncompressed frame."""
    return header.rows * header.columns * header.bits_allocated // 8


def frame_digest(header: FileHeader) -> bytes:
    """Of the bytes of one frame as they lie in its file, compressed or not. Raises StudyRefused where there is none."""
    with unchanged(header) as file:
        return hashlib.blake2b(frame_in(file, header)).digest()


def file_checksum(header: FileHeader) -> int:
    """CRC-32C of the whole file. Raises StudyRefused where it changed since its header was read, or is gone."""
    checksum = google_crc32c.Checksum()
    with unchanged(header) as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")


def unchanged_in_turn(headers: Sequence[FileHeader]) -> Iterator[AbstractContextManager[io.FileIO]]:
    """`unchanged` of each, to be entered one after another: see `opened_in_turn`."""
    if any(header.frames > 1 for header in headers):
        yield from map(unchanged, headers)
        return
    files = opened_in_turn((header.path, max(1, header.size)) for header in headers)
    yield from map(unchanged, headers, files)


@contextmanager
def unchanged(header: FileHeader, opening: Opening | None = None) -> Iterator[io.FileIO]:
    """The file of a header, open. Raises StudyRefused where its size or time is not the header's, or it cannot be read."""
    try:
        with opening or _opened(header) as (file, state):
            if state != (header.size, header.mtime_ns):
                raise StudyRefused("source_changed", "a file changed after its header was read")
            yield file
    except OSError as error:
        raise StudyRefused("source_changed", f"a file can no longer be read ({type(error).__name__})") from None


def _opened(header: FileHeader) -> Opening:
    if header.frames == 1:
        return opened(header.path, max(1, header.size))
    return opened_copy(header.path, FileState(header.size, header.mtime_ns))
