"""Reading one file's header: values are taken from the raw elements, not through pydicom's converters.

A broken value then is a `problem` of its file instead of a warning that prints it, and the pass costs half.
"""

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from preprocess.decode import PLUGINS, decoder_names
from preprocess.elements import HEAD_BYTES, META_BEGIN, UNDEFINED_LENGTH, Elements, walk
from preprocess.findings import Finding
from preprocess.header import MAX_PIXELS, NATIVE_SYNTAXES, FileHeader, Vector

MAX_FRAMES = 20_000
MAX_MM, MAX_HU = 1e6, 1e9
"""Beyond any table and any scanner, but small enough to compute with."""

INT32 = range(-(2**31), 2**31)

_PIXEL_FIELDS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_OTHER_FIELDS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionNumber", "Modality"),
    *(
        "ImageType",
        "Manufacturer",
        "ConvolutionKernel",
        "PhotometricInterpretation",
        "NumberOfFrames",
        "SliceThickness",
    ),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
)
_TAGS = {keyword: Tag(keyword) for keyword in (*_PIXEL_FIELDS, *_OTHER_FIELDS)}
_WANTED = frozenset(map(int, _TAGS.values()))


def read_headers(path: str | Path) -> list[FileHeader] | Finding:
    """The frames of one file, [] where it is no image and need not be, or the Finding that tells why it is
    unreadable."""
    path = Path(path)
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            head = file.read(HEAD_BYTES)
            if head[128:META_BEGIN] != b"DICM":
                return _not_dicom(path)
            elements = walk(head, _WANTED, _walked_syntaxes())
            if elements is not None:
                return _frames_of_ordinary(elements, path, status)
            file.seek(0)
            return _read_by_pydicom(io.BufferedReader(file), path, status)
    except OSError as error:
        return Finding("", "", "refused", "unreadable_file", f"reading failed ({type(error).__name__})", str(path))


@cache
def _walked_syntaxes() -> frozenset[str]:
    return frozenset(syntax for syntax in PLUGINS if syntax != uid.ExplicitVRBigEndian and decoder_names(syntax))


def _frames_of_ordinary(elements: Elements, path: Path, status: os.stat_result) -> list[FileHeader]:
    if elements.storage_class == uid.MediaStorageDirectoryStorage:
        return []
    header = _read_header(_Reader(elements.syntax, elements.values.get), elements.pixels, path, status)
    return [_check_geometry(_check_length(header))]


def _read_by_pydicom(file: BinaryIO, path: Path, status: os.stat_result) -> list[FileHeader] | Finding:
    """What is not ordinary, or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings print header text
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == uid.MediaStorageDirectoryStorage:
                return []
            return _frames_of(dataset, file, path, status)
    except InvalidDicomError:
        return _not_dicom(path)
    except OSError:
        raise
    except Exception as error:  # pydicom meets broken bytes with exceptions of every kind
        message = f"parsing failed ({type(error).__name__})"
        return Finding("", "", "refused", "unreadable_header", message, str(path))


def _not_dicom(path: Path) -> list | Finding:
    if path.suffix.lower() != ".dcm":
        return []
    return Finding("", "", "refused", "not_dicom", "named .dcm but without the DICOM preamble", str(path))


def _frames_of(dataset: Dataset, file: BinaryIO, path: Path, status: os.stat_result) -> list[FileHeader]:
    def value(tag: int) -> object:
        element = dataset.get_item(tag)
        return None if element is None else element.value

    reader = _Reader(str(dataset.file_meta.get("TransferSyntaxUID", "")).strip(), value)
    header = _read_header(reader, _find_pixels(dataset, file), path, status)
    if not header.pixel_offset:  # what else is wrong follows from that
        return [replace(header, problems=(("no_pixel_data", "no PixelData element where the header ends"),))]
    header = _check_length(header)
    if header.frames == 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_check_geometry(header)]
    return [_check_geometry(frame) for frame in _expand(header, dataset)]


def _read_header(reader: "_Reader", pixels: tuple[int, int | None], path: Path, status: os.stat_result) -> FileHeader:
    reader.check_pixels()
    offset, length = pixels
    return reader.header(
        path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, pixel_offset=offset, pixel_length=length
    )


class _Reader:
    """Values of one dataset, collecting what is wrong with them. `value`: tag -> bytes as they lie in the file, or what
    pydicom makes of them; None where the element is absent."""

    def __init__(self, syntax: str, value: Callable[[int], object]):
        self.syntax, self.value = syntax, value
        self.little = syntax != uid.ExplicitVRBigEndian
        self.problems: list[tuple[str, str]] = []

    def text(self, keyword: str) -> str:
        value = self.value(_TAGS[keyword])
        if isinstance(value, bytes):
            return value.decode("ascii", "replace").strip(" \0")
        return "" if value is None else str(value).strip(" \0")

    def whole(self, keyword: str) -> int | None:
        """An unsigned short (VR US), or None where it is absent."""
        value = self.value(_TAGS[keyword])
        if isinstance(value, bytes) and len(value) == 2:
            return int.from_bytes(value, "little" if self.little else "big")
        return value if isinstance(value, int) else None

    def floats(self, keyword: str, count: int) -> Vector | None:
        text = self.text(keyword)
        return _floats(text.split("\\") if text else [], count)

    def problem(self, reason: str, message: str) -> None:
        self.problems.append((reason, message))

    def check_pixels(self) -> None:
        if not self.syntax:
            self.problem("missing_field", "TransferSyntaxUID is absent")
        elif not decoder_names(self.syntax):
            self.problem("unsupported_syntax", "no decoder for its transfer syntax")
        if not self.text("StudyInstanceUID"):
            self.problem("missing_field", "StudyInstanceUID is absent")
        values = {keyword: self.whole(keyword) for keyword in _PIXEL_FIELDS}
        photometric = self.text("PhotometricInterpretation")
        absent = [keyword for keyword, value in values.items() if value is None]
        absent += [] if photometric else ["PhotometricInterpretation"]
        if absent:
            self.problem("missing_field", f"{', '.join(absent)} absent")
            return
        rows, columns, samples, allocated, stored, high, representation = values.values()
        if rows == 0 or columns == 0:
            self.problem("invalid_field", f"Rows x Columns is {rows} x {columns}")
        if rows * columns > MAX_PIXELS:
            self.problem("pixels_too_many", f"{rows} x {columns} pixels, the cap is {MAX_PIXELS}")
        if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2") or allocated not in (8, 16):
            self.problem("unsupported_pixels", f"{samples} samples per pixel in {allocated} bits, or no grey picture")
        elif not 1 <= stored <= allocated or representation not in (0, 1):
            self.problem(
                "invalid_field", f"BitsStored {stored}, BitsAllocated {allocated}, PixelRepresentation {representation}"
            )
        elif high != stored - 1:
            self.problem("high_bit", f"HighBit {high} with BitsStored {stored}")

    def frames(self) -> int:
        text = self.text("NumberOfFrames")
        if not text:
            return 1
        if not re.fullmatch(r"\+?\d{1,9}", text) or not 1 <= int(text) <= MAX_FRAMES:
            self.problem("invalid_field", f"NumberOfFrames is not a number from 1 to {MAX_FRAMES}")
            return 1
        return int(text)

    def header(self, **where) -> FileHeader:
        thickness = self.floats("SliceThickness", 1)
        number = self.text("InstanceNumber")
        number = int(number) if re.fullmatch(r"[+-]?\d{1,10}", number) else None
        slope, intercept = self.floats("RescaleSlope", 1), self.floats("RescaleIntercept", 1)
        return FileHeader(
            number=0,
            transfer_syntax=self.syntax,
            study_uid=self.text("StudyInstanceUID"),
            series_uid=self.text("SeriesInstanceUID"),
            sop_uid=self.text("SOPInstanceUID"),
            modality=self.text("Modality"),
            image_type=tuple(part.strip().upper() for part in self.text("ImageType").split("\\")),
            manufacturer=self.text("Manufacturer"),
            kernel=self.text("ConvolutionKernel"),
            acquisition=self.text("AcquisitionNumber"),
            thickness=thickness[0] if thickness else None,
            instance_number=number if number is not None and number in INT32 else None,
            rows=self.whole("Rows") or 0,
            columns=self.whole("Columns") or 0,
            frame=0,
            frames=self.frames(),
            bits_allocated=self.whole("BitsAllocated") or 0,
            bits_stored=self.whole("BitsStored") or 0,
            pixel_representation=self.whole("PixelRepresentation") or 0,
            photometric=self.text("PhotometricInterpretation"),
            # not finite is kept as nan, to be told from absent
            slope=slope[0] if slope else (math.nan if self.text("RescaleSlope") else None),
            intercept=intercept[0] if intercept else (math.nan if self.text("RescaleIntercept") else None),
            position=self.floats("ImagePositionPatient", 3),
            orientation=self.floats("ImageOrientationPatient", 6),
            pixel_spacing=self.floats("PixelSpacing", 2),
            problems=tuple(self.problems),
            **where,
        )


def _floats(parts, count: int) -> Vector | None:
    """`count` finite numbers, or None."""
    try:
        values = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _find_pixels(dataset: Dataset, file: BinaryIO) -> tuple[int, int | None]:
    """Offset and length of PixelData's value (None: undefined length), (0, 0) where the file has none.

    pydicom has left `file` at the element's first byte.
    """
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = file.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12) or struct.unpack_from(f"{order}HH", head) != (0x7FE0, 0x0010):
        return 0, 0
    (length,) = struct.unpack_from(f"{order}L", head, 4 if implicit else 8)
    return file.tell(), None if length == UNDEFINED_LENGTH else length


def _check_length(header: FileHeader) -> FileHeader:
    """Uncompressed pixel data must have exactly the bytes that the header asks for, padded to an even number."""
    if header.problems:
        return header
    if header.transfer_syntax not in NATIVE_SYNTAXES:
        if header.pixel_length is None:
            return header
        return header.with_problem("pixel_length", "compressed pixel data of defined length")
    wanted = header.rows * header.columns * header.frames * header.bits_allocated // 8
    if header.pixel_length not in (wanted, wanted + wanted % 2):
        return header.with_problem("pixel_length", f"{header.pixel_length} bytes of pixel data, {wanted} expected")
    if header.pixel_offset + wanted > header.size:
        missing = header.pixel_offset + wanted - header.size
        return header.with_problem("pixel_length", f"the file ends {missing} bytes too early")
    return header


def _check_geometry(header: FileHeader) -> FileHeader:
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
        header = header.with_problem("invalid_field", "RescaleSlope or RescaleIntercept is no number to compute with")
    return header


def _expand(header: FileHeader, dataset: Dataset) -> Iterator[FileHeader]:
    """One header per frame, with the geometry and rescaling of its functional groups (DICOM PS3.3 C.7.6.16)."""
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    for index in range(header.frames):
        groups = [*per_frame[index : index + 1], *shared]

        def value(macro: str, keyword: str, count: int, default: Vector | None, groups=groups) -> Vector | None:
            for group in groups:
                items = group.get(macro)
                if items and keyword in items[0]:
                    found = items[0].get(keyword)
                    return _floats(found if count > 1 else [found], count)
            return default

        slope = value("PixelValueTransformationSequence", "RescaleSlope", 1, None)
        intercept = value("PixelValueTransformationSequence", "RescaleIntercept", 1, None)
        thickness = value("PixelMeasuresSequence", "SliceThickness", 1, None)
        # frames without a position of their own would all lie at the file's
        own_position = header.position if header.frames == 1 else None
        yield replace(
            header,
            frame=index,
            instance_number=index + 1 if header.frames > 1 else header.instance_number,
            position=value("PlanePositionSequence", "ImagePositionPatient", 3, own_position),
            orientation=value("PlaneOrientationSequence", "ImageOrientationPatient", 6, header.orientation),
            pixel_spacing=value("PixelMeasuresSequence", "PixelSpacing", 2, header.pixel_spacing),
            slope=slope[0] if slope else header.slope,
            intercept=intercept[0] if intercept else header.intercept,
            thickness=thickness[0] if thickness else header.thickness,
        )
