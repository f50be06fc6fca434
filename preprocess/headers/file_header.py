"""What the project needs to know of one DICOM file."""

import re
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

MAX_PIXELS = 4096 * 4096
"""Cap on Rows x Columns: CT scanners write up to 2048 x 2048; a header beyond it is a lie that would cost
gigabytes."""

Vector = tuple[float, ...]
Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    """A value of an image whose geometry was judged before. Raises ValueError where there is none."""
    if value is None:
        raise ValueError("an image without geometry has no position")
    return value


@dataclass(frozen=True, slots=True)
class SeriesMarks:
    """What else tells one patient, acquisition or reconstruction from another. Files that say the same share one object.

    patient: PatientID hashed under a salt of this header pass, b"" where absent; it is kept nowhere. padding: first and
    last stored value that stand for no measurement, None where there is none.
    """

    patient: bytes = b""
    frame_of_reference: str = ""
    series_number: int | None = None
    kvp: float | None = None
    stack: str = ""
    temporal_index: int | None = None
    rescale_type: str = ""
    padding: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What the project needs to know of one frame of one DICOM file (almost always: the only frame of it).

    `problems` holds (reason, message) for everything that forbids using the frame; the fields concerned are then None
    or 0 (a slope or intercept that is no number: nan). `pixel_offset` is the byte at which the value of PixelData
    begins, `pixel_length` its bytes (None: encapsulated, of undefined length), `pixel_vr` its VR, so that decoding never
    parses the header again. Lengths are mm in the patient's LPS system, times seconds since midnight.
    """

    path: str
    number: int
    """which file of the source it is, from 1 on; 0 where it was read alone"""
    size: int
    mtime_ns: int
    transfer_syntax: str
    study_uid: str
    series_uid: str
    sop_uid: str
    modality: str
    image_type: tuple[str, ...]
    manufacturer: str
    kernel: str
    acquisition: str
    acquisition_time: float | None
    content_time: float | None
    marks: SeriesMarks
    thickness: float | None
    instance_number: int | None
    rows: int
    columns: int
    frame: int
    frames: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    photometric: str
    slope: float | None
    intercept: float | None
    position: Vector | None
    orientation: Vector | None
    pixel_spacing: Vector | None
    pixel_offset: int
    pixel_length: int | None
    pixel_vr: str
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def number_in_name(self) -> int | None:
        """The slice number of the RSNA layout `<StudyInstanceUID>/<n>.dcm`, or None where the file does not lie
        so."""
        path = Path(self.path)
        if path.parent.name != self.study_uid or not re.fullmatch(r"\d{1,9}", path.stem):
            return None
        return int(path.stem)

    @property
    def lacks_geometry(self) -> bool:
        """Whether it cannot be said where its pixels lie."""
        return None in (self.position, self.orientation, self.pixel_spacing) or self.has_problem("invalid_orientation")

    def __reduce__(self) -> tuple:  # pickles at three times the speed of a dataclass with slots
        return FileHeader, _values_of(self)

    def with_problem(self, reason: str, message: str) -> "FileHeader":
        return replace(self, problems=(*self.problems, (reason, message)))

    def has_problem(self, reason: str) -> bool:
        return any(name == reason for name, _ in self.problems)


_values_of = attrgetter(*(field.name for field in fields(FileHeader)))
