"""Values of one DICOM header, as they lie in the file, with what is wrong with them."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from sys import intern
from typing import Any

from pydicom import uid
from pydicom.tag import Tag

from preprocess.decoders import decoder_names
from preprocess.headers.file_header import MAX_PIXELS, FileHeader, SeriesMarks, Vector

MAX_FRAMES = 20_000
INT32 = range(-(2**31), 2**31)
HU_WORDS = ("", "HU")
"""RescaleType of Hounsfield units; an absent one says so of original CT images (DICOM PS3.3 C.11.1.1.2)"""

NOT_HU_WORDS = frozenset(
    {
        # multi-energy CT (DICOM PS3.3 C.8.15.3.1.1, C.8.2.1.1.1)
        *("ELECTRON_DENSITY", "EFF_ATOMIC_NUM", "MAT_FRACTIONAL", "MAT_SPECIFIC", "MAT_VALUE_BASED"),
        *("Z_EFF", "ZEFF", "Z_EFFECTIVE", "RHO_Z", "RHO", "IODINE_MAP", "IODINE_DENSITY"),
        # perfusion and other maps computed from several images
        *("CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TTD", "TTS", "TMAX", "PBF", "PBV"),
        *("PERM", "FLOWEXT", "PERFUSION"),
        *("PARAMETRIC", "PARAMETRIC_MAP", "PARAMETRIC MAP"),
        # derived pixel contrast whose values are sums or ratios of HU (DICOM PS3.3 C.8.16.1.1)
        *("DIVISION", "MULTIPLICATION", "STD_DEVIATION", "SUBTRACTION"),
    }
)
"""Third or fourth values of ImageType that name a parametric map"""

INTEGER = re.compile(r"[+-]?\d{1,12}", re.ASCII)
TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2}(\.\d{1,6})?)?", re.ASCII)
DATE_TIME = re.compile(r"\d{8}(\d{2}.*?)([+-]\d{4})?", re.ASCII)

PIXEL_FIELDS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_OTHER_FIELDS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionNumber", "Modality"),
    *("ImageType", "Manufacturer", "ConvolutionKernel", "PhotometricInterpretation", "NumberOfFrames"),
    *("SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PatientID", "FrameOfReferenceUID", "SeriesNumber", "AcquisitionTime", "ContentTime", "KVP"),
    *("StackID", "TemporalPositionIndex", "TemporalPositionIdentifier"),
)
TAGS = {keyword: int(Tag(keyword)) for keyword in (*PIXEL_FIELDS, *_OTHER_FIELDS)}
"""plain numbers: pydicom's tags hash and compare in Python"""
HEADER_TAGS = frozenset(TAGS.values())


class HeaderValues:
    """Values of one dataset, collecting what is wrong with them.

    value: tag -> bytes as they lie in the file, or what pydicom makes of them; None where the element is absent. salt: of
    the hash that stands for PatientID.
    """

    def __init__(self, syntax: str, value: Callable[[int], object], salt: bytes):
        self.syntax, self.value, self.salt = syntax, value, salt
        self.little = syntax != uid.ExplicitVRBigEndian
        self.problems: list[tuple[str, str]] = []

    def text(self, keyword: str) -> str:
        value = self.value(TAGS[keyword])
        if isinstance(value, bytes):
            return value.decode("ascii", "replace").strip(" \t\0")
        return "" if value is None else str(value).strip(" \t\0")

    def shared(self, keyword: str) -> str:
        """The text, as one object for all files that say the same."""
        return intern(self.text(keyword))

    def short(self, keyword: str) -> int | None:
        """An unsigned short (VR US), or None where it is absent."""
        value = self.value(TAGS[keyword])
        if isinstance(value, bytes) and len(value) == 2:
            return int.from_bytes(value, "little" if self.little else "big")
        return value & 0xFFFF if isinstance(value, int) else None

    def floats(self, keyword: str, count: int) -> Vector | None:
        text = self.text(keyword)
        return floats(text.split("\\") if text else [], count)

    def one_float(self, keyword: str) -> float | None:
        found = self.floats(keyword, 1)
        return found[0] if found else None

    def integer(self, keyword: str) -> int | None:
        return integer(self.text(keyword))

    def problem(self, reason: str, message: str) -> None:
        self.problems.append((reason, message))

    def check_pixels(self) -> None:
        if not self.syntax:
            self.problem("missing_field", "TransferSyntaxUID is absent")
        elif not decoder_names(self.syntax):
            self.problem("unsupported_syntax", "no decoder for its transfer syntax")
        if not self.text("StudyInstanceUID"):
            self.problem("missing_field", "StudyInstanceUID is absent")
        values = {keyword: self.short(keyword) for keyword in PIXEL_FIELDS}
        photometric = self.text("PhotometricInterpretation")
        absent = [keyword for keyword, value in values.items() if value is None]
        absent += [] if photometric else ["PhotometricInterpretation"]
        if absent:
            self.problem("missing_field", f"{', '.join(absent)} absent")
            return
        rows, columns, samples, allocated, stored, high, representation = (value or 0 for value in values.values())
        if rows == 0 or columns == 0:
            self.problem("invalid_field", f"Rows x Columns is {rows} x {columns}")
        if rows * columns > MAX_PIXELS:
            self.problem("pixels_too_many", f"{rows} x {columns} pixels, the limit is {MAX_PIXELS}")
        if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2") or allocated not in (8, 16):
            self.problem("unsupported_pixels", f"{samples} samples per pixel in {allocated} bits, or not monochrome")
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

    def image_type(self) -> tuple[str, ...]:
        return image_type(self.text("ImageType"))

    def marks(self) -> SeriesMarks:
        index = self.value(TAGS["TemporalPositionIndex"])
        if isinstance(index, bytes):
            index = int.from_bytes(index, "little" if self.little else "big") if len(index) == 4 else None
        return shared_marks(
            hashed(self.value(TAGS["PatientID"]), self.salt),
            self.text("FrameOfReferenceUID"),
            self.integer("SeriesNumber"),
            self.one_float("KVP"),
            self.text("StackID"),
            index if isinstance(index, int) else self.integer("TemporalPositionIdentifier"),
            self.text("RescaleType").upper(),
            self._padding(),
        )

    def _padding(self) -> tuple[int, int] | None:
        value, limit = self.short("PixelPaddingValue"), self.short("PixelPaddingRangeLimit")
        if value is None:
            return None
        limit = value if limit is None else limit
        if self.short("PixelRepresentation"):
            value, limit = ((word ^ 0x8000) - 0x8000 for word in (value, limit))
        return min(value, limit), max(value, limit)

    def header(self, **where: Any) -> FileHeader:
        number = self.integer("InstanceNumber")
        slope, intercept = self.one_float("RescaleSlope"), self.one_float("RescaleIntercept")
        return FileHeader(
            number=0,
            transfer_syntax=intern(self.syntax),
            study_uid=self.shared("StudyInstanceUID"),
            series_uid=self.shared("SeriesInstanceUID"),
            sop_uid=self.text("SOPInstanceUID"),
            modality=intern(self.text("Modality").upper()),
            image_type=self.image_type(),
            manufacturer=self.shared("Manufacturer"),
            kernel=self.shared("ConvolutionKernel"),
            acquisition=self.shared("AcquisitionNumber"),
            acquisition_time=seconds(self.text("AcquisitionTime")),
            content_time=seconds(self.text("ContentTime")),
            marks=self.marks(),
            thickness=self.one_float("SliceThickness"),
            instance_number=number if number is not None and number in INT32 else None,
            rows=self.short("Rows") or 0,
            columns=self.short("Columns") or 0,
            frame=0,
            frames=self.frames(),
            bits_allocated=self.short("BitsAllocated") or 0,
            bits_stored=self.short("BitsStored") or 0,
            pixel_representation=self.short("PixelRepresentation") or 0,
            photometric=self.shared("PhotometricInterpretation"),
            # not finite is kept as nan, to be told from absent
            slope=slope if slope is not None else (math.nan if self.text("RescaleSlope") else None),
            intercept=intercept if intercept is not None else (math.nan if self.text("RescaleIntercept") else None),
            position=self.floats("ImagePositionPatient", 3),
            orientation=shared_vector(self.floats("ImageOrientationPatient", 6)),
            pixel_spacing=shared_vector(self.floats("PixelSpacing", 2)),
            problems=tuple(self.problems),
            **where,
        )


@lru_cache(4096)
def shared_marks(*values: Any) -> SeriesMarks:
    """The fields of SeriesMarks in their order."""
    return SeriesMarks(*values)


@lru_cache(256)
def hashed(value: object, salt: bytes) -> bytes:
    """PatientID under a salt, 8 bytes; b"" where it is absent or blank."""
    if value is None:
        return b""
    plain = (value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")).strip(b" \t\0")
    return hashlib.blake2b(plain, key=salt, digest_size=8).digest() if plain else b""


@lru_cache(4096)
def shared_vector(vector: Vector | None) -> Vector | None:
    return vector


@lru_cache(4096)
def image_type(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split("\\"))


def floats(parts: Iterable[str], count: int) -> Vector | None:
    """`count` finite decimal strings (DICOM PS3.5 6.2) as numbers, or None. Python's float would also take `1_0`."""
    try:
        values = tuple(map(float, parts))
    except ValueError:
        return None
    whole = len(values) == count and all(map(math.isfinite, values)) and not any("_" in part for part in parts)
    return values if whole else None


def integer(text: str) -> int | None:
    """An integer string (DICOM PS3.5 6.2), or None."""
    return int(text) if INTEGER.fullmatch(text) else None


def seconds(text: str) -> float | None:
    """A time or date-time (DICOM PS3.5 6.2) as seconds since midnight, or None."""
    whole = DATE_TIME.fullmatch(text)
    found = TIME.fullmatch(whole[1] if whole else text)
    if not found:
        return None
    return 3600.0 * int(found[1]) + 60.0 * int(found[2] or 0) + float(found[3] or 0)
