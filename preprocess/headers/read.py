"""Reading one file's header: values are taken from the raw elements, not through pydicom's converters.

A broken value then is a `problem` of its file instead of a warning that prints it, and the pass costs half.
"""

import io
import os
import struct
from dataclasses import dataclass, replace
from functools import cache
from typing import BinaryIO

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from cache_schema.store_path import Place
from preprocess.decoders import NATIVE_SYNTAXES, PLUGINS, decoder_names
from preprocess.findings import Finding
from preprocess.headers.elements import HEAD_BYTES, META_BEGIN, UNDEFINED_LENGTH, Elements, walk
from preprocess.headers.enhanced import frames_of
from preprocess.headers.file_header import FileHeader
from preprocess.headers.file_kinds import APPLE_DOUBLE, archive_kind, is_bare_dicom, other_kind
from preprocess.headers.opened import FileState, opened
from preprocess.headers.values import HEADER_TAGS, HU_WORDS, NOT_HU_WORDS, HeaderValues
from preprocess.warnings_off import warnings_off

MAX_MM, MAX_HU = 1e6, 1e9
"""Beyond any table and any scanner, but small enough to compute with."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""a file named so is meant to be DICOM, whatever it holds"""

WHY_UNSUPPORTED = {
    uid.DeflatedExplicitVRLittleEndian: "deflated data sets are not supported; write them again uncompressed",
    "1.2.840.10008.1.2.4.94": "its pixel data is on a server (JPIP), not in the file",
    "1.2.840.10008.1.2.4.95": "its pixel data is on a server (JPIP), not in the file",
}


@dataclass(frozen=True)
class OtherFile:
    """A file that is known to be no DICOM image. kind: in a few words and the plural."""

    kind: str


def read_headers(path: str | Place, salt: bytes = b"") -> list[FileHeader] | Finding | OtherFile:
    """The frames of one file, what else it is, or the Finding that tells why it is unreadable.

    salt: of the hash that stands for PatientID; at most 64 bytes, one for all files of a source.
    """
    path = str(path)
    try:
        with opened(path) as (file, status):
            head = file.read(HEAD_BYTES)
            if head[128:META_BEGIN] == b"DICM":
                elements = walk(head, HEADER_TAGS, _walked_syntaxes())
                if elements is not None:
                    return _frames_of_ordinary(elements, path, status, salt)
            elif not is_bare_dicom(head):
                return _not_dicom(path, head)
            file.seek(0)
            return _read_by_pydicom(io.BufferedReader(file), path, status, salt)
    except OSError as error:
        return Finding("", "", "refused", "unreadable_file", f"reading failed ({type(error).__name__})", path)


@cache
def _walked_syntaxes() -> frozenset[str]:
    return frozenset(syntax for syntax in PLUGINS if syntax != uid.ExplicitVRBigEndian and decoder_names(syntax))


def _frames_of_ordinary(elements: Elements, path: str, status: FileState, salt: bytes) -> list[FileHeader] | OtherFile:
    if elements.storage_class == uid.MediaStorageDirectoryStorage:
        return OtherFile("DICOMDIR files")
    values = HeaderValues(elements.syntax, elements.values.get, salt)
    header = _read_header(values, elements.pixels, path, status)
    return [_check_values(_check_length(header))]


def _read_by_pydicom(
    file: BinaryIO, path: str, status: FileState, salt: bytes
) -> list[FileHeader] | Finding | OtherFile:
    """What is not ordinary, or broken."""
    try:
        with warnings_off():
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == uid.MediaStorageDirectoryStorage:
                return OtherFile("DICOMDIR files")
            return _frames_of_dataset(dataset, file, path, status, salt)
    except InvalidDicomError:
        return _not_dicom(path, b"")
    except OSError:
        raise
    except Exception as error:  # pydicom meets broken bytes with exceptions of every kind
        message = f"parsing failed ({type(error).__name__})"
        return Finding("", "", "refused", "unreadable_header", message, path)


def _not_dicom(path: str, head: bytes) -> Finding | OtherFile:
    archive, kind = archive_kind(head), other_kind(head)
    named = os.path.splitext(path)[1].lower() in DICOM_SUFFIXES
    if kind is not None and (kind == APPLE_DOUBLE or not named):
        return OtherFile(kind)
    if archive is not None:
        return Finding("", "", "refused", "archive", f"a {archive} archive; unpack it", path)
    if not head:
        message = "the file is empty"
    elif named:
        message = f"named {os.path.splitext(path)[1].lower()} but without the DICOM preamble"
    else:
        message = "neither DICOM nor another known kind of file; it may be truncated"
    return Finding("", "", "refused", "not_dicom", message, path)


def _frames_of_dataset(
    dataset: Dataset, file: BinaryIO, path: str, status: FileState, salt: bytes
) -> list[FileHeader] | Finding:
    def value(tag: int) -> object:
        element = dataset.get_item(tag)
        return None if element is None else element.value

    if "StudyInstanceUID" not in dataset and "SOPClassUID" not in dataset:
        return Finding("", "", "refused", "unreadable_header", "neither StudyInstanceUID nor SOPClassUID", path)
    header = _read_header(HeaderValues(_syntax(dataset), value, salt), _find_pixels(dataset, file), path, status)
    if header.has_problem("unsupported_syntax"):  # what else is wrong may follow from that
        message = WHY_UNSUPPORTED.get(header.transfer_syntax, "no decoder for its transfer syntax")
        return [replace(header, problems=(("unsupported_syntax", message),))]
    if not header.pixel_offset:
        return [replace(header, problems=(("no_pixel_data", "no PixelData element where the header ends"),))]
    header = _check_length(header)
    if header.frames == 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_check_values(header)]
    return [_check_values(frame) for frame in frames_of(header, dataset)]


def _syntax(dataset: Dataset) -> str:
    """TransferSyntaxUID; of a data set without file meta information the plain one that it could be read in."""
    named = str(dataset.file_meta.get("TransferSyntaxUID", "")).strip()
    if named or len(dataset.file_meta):
        return named
    implicit, little = dataset.original_encoding
    if not little:
        return str(uid.ExplicitVRBigEndian)
    return str(uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian)


def _read_header(values: HeaderValues, pixels: tuple[int, int | None, str], path: str, status: FileState) -> FileHeader:
    values.check_pixels()
    offset, length, vr = pixels
    return values.header(
        path=path,
        size=status.size,
        mtime_ns=status.mtime_ns,
        pixel_offset=offset,
        pixel_length=length,
        pixel_vr=vr,
    )


def _find_pixels(dataset: Dataset, file: BinaryIO) -> tuple[int, int | None, str]:
    """Offset, length (None: undefined) and VR of PixelData's value, (0, 0, "") where the file has none.

    pydicom has left `file` at the element's first byte.
    """
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = file.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12) or struct.unpack_from(f"{order}HH", head) != (0x7FE0, 0x0010):
        return 0, 0, ""
    (length,) = struct.unpack_from(f"{order}L", head, 4 if implicit else 8)
    vr = "OW" if implicit else head[4:6].decode("ascii", "replace")
    return file.tell(), None if length == UNDEFINED_LENGTH else length, vr


def _check_length(header: FileHeader) -> FileHeader:
    """Uncompressed pixel data must have exactly the bytes that the header asks for, padded to an even number."""
    if header.problems:
        return header
    if header.transfer_syntax not in NATIVE_SYNTAXES:
        if header.pixel_length is None:
            return header
        return header.with_problem("pixel_length", "compressed pixel data of defined length")
    if header.pixel_length is None:
        message = "compressed pixel data under a transfer syntax of uncompressed data"
        return header.with_problem("pixel_length", message)
    expected = header.rows * header.columns * header.frames * header.bits_allocated // 8
    if header.pixel_length not in (expected, expected + expected % 2):
        return header.with_problem("pixel_length", f"{header.pixel_length} bytes of pixel data, {expected} expected")
    if header.pixel_offset + expected > header.size:
        missing = header.pixel_offset + expected - header.size
        return header.with_problem("pixel_length", f"the file ends {missing} bytes too early")
    return header


def _check_values(header: FileHeader) -> FileHeader:
    """The fields a frame takes from its own functional group, where it has one, are judged once they are known."""
    for keyword, value, largest in (
        ("ImagePositionPatient", header.position, MAX_MM),
        ("ImageOrientationPatient", header.orientation, 2),
        ("PixelSpacing", header.pixel_spacing, MAX_MM),
    ):
        if value is None:
            header = header.with_problem("missing_field", f"{keyword} absent or not numbers")
        elif max(map(abs, value)) > largest or (keyword == "PixelSpacing" and min(value) <= 0):
            header = header.with_problem("invalid_field", f"{keyword} is out of range")
    if header.slope is None or header.intercept is None:
        header = header.with_problem("missing_rescale", "RescaleSlope or RescaleIntercept absent")
    elif header.slope == 0 or not (abs(header.slope) < MAX_HU and abs(header.intercept) < MAX_HU):
        header = header.with_problem("invalid_field", "RescaleSlope or RescaleIntercept is out of range")
    if header.marks.rescale_type not in HU_WORDS:
        header = header.with_problem("not_hu", "by RescaleType the values are not Hounsfield units")
    elif not NOT_HU_WORDS.isdisjoint(header.image_type[2:4]):
        header = header.with_problem("not_hu", "by ImageType it is a parametric map")
    return header
