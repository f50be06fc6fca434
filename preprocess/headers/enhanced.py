"""The frames of a multi-frame object: each with the geometry, rescaling and acquisition of its functional groups."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pydicom.dataset import Dataset

from preprocess.headers.file_header import FileHeader, Vector
from preprocess.headers.values import floats, image_type, integer, seconds, shared_marks, shared_vector


class _Groups:
    """What applies to one frame: its own functional groups first, then the shared ones (DICOM PS3.3 C.7.6.16)."""

    def __init__(self, groups: list[Dataset]):
        self._groups = groups

    def text(self, macro: str, keyword: str) -> str:
        found = self._found(macro, keyword)
        parts = found if isinstance(found, Iterable) and not isinstance(found, str | bytes) else [found]
        return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")

    def vector(self, macro: str, keyword: str, count: int) -> Vector | None:
        text = self.text(macro, keyword)
        return floats(text.split("\\"), count) if text else None

    def number(self, macro: str, keyword: str) -> float | None:
        found = self.vector(macro, keyword, 1)
        return found[0] if found else None

    def has(self, macro: str, keyword: str) -> bool:
        return self._found(macro, keyword) is not None

    def _found(self, macro: str, keyword: str) -> object:
        for group in self._groups:
            items = group.get(macro)
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return None


def frames_of(header: FileHeader, dataset: Dataset) -> Iterator[FileHeader]:
    """One header per frame; what its groups do not say is the file's."""
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    for index in range(header.frames):
        yield _frame(header, index, _Groups([*per_frame[index : index + 1], *shared]))


def _frame(header: FileHeader, index: int, groups: _Groups) -> FileHeader:
    def vector(macro: str, keyword: str, count: int, default: Vector | None) -> Vector | None:
        return groups.vector(macro, keyword, count) if groups.has(macro, keyword) else default

    def number(macro: str, keyword: str, default: float | None) -> float | None:
        found = groups.number(macro, keyword)
        return default if found is None else found

    frame, rescale = "FrameContentSequence", "PixelValueTransformationSequence"
    marks = header.marks
    time = seconds(groups.text(frame, "FrameAcquisitionDateTime"))
    temporal_index = integer(groups.text(frame, "TemporalPositionIndex"))
    frame_type = groups.text("CTImageFrameTypeSequence", "FrameType")
    return replace(
        header,
        frame=index,
        instance_number=index + 1 if header.frames > 1 else header.instance_number,
        acquisition=groups.text(frame, "FrameAcquisitionNumber") or header.acquisition,
        acquisition_time=header.acquisition_time if time is None else time,
        image_type=image_type(frame_type) if frame_type else header.image_type,
        kernel=groups.text("CTReconstructionSequence", "ConvolutionKernel") or header.kernel,
        marks=shared_marks(
            marks.patient,
            marks.frame_of_reference,
            marks.series_number,
            number("CTXRayDetailsSequence", "KVP", marks.kvp),
            groups.text(frame, "StackID") or marks.stack,
            marks.temporal_index if temporal_index is None else temporal_index,
            groups.text(rescale, "RescaleType").upper() or marks.rescale_type,
            marks.padding,
        ),
        # frames without a position of their own would all lie at the file's
        position=vector(
            "PlanePositionSequence", "ImagePositionPatient", 3, header.position if header.frames == 1 else None
        ),
        orientation=shared_vector(vector("PlaneOrientationSequence", "ImageOrientationPatient", 6, header.orientation)),
        pixel_spacing=shared_vector(vector("PixelMeasuresSequence", "PixelSpacing", 2, header.pixel_spacing)),
        slope=number(rescale, "RescaleSlope", header.slope),
        intercept=number(rescale, "RescaleIntercept", header.intercept),
        thickness=number("PixelMeasuresSequence", "SliceThickness", header.thickness),
    )
