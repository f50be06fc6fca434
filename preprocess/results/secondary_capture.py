"""A key slice as a Secondary Capture Image (DICOM PS3.3 A.8.1): RGB, words burnt in, placed where its source lies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom import CoordinateSystemNames
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DS

from preprocess.results.filing import MAKER, file_under
from preprocess.results.identifiers import Identifiers
from preprocess.results.key_slice import WARNING, KeySlice, title, with_words
from preprocess.results.source_image import SourceImage
from preprocess.series.study_plan import StudyPlan

SERIES_NUMBER = 9901
"""beyond those that scanners give"""


def secondary_captures(
    plan: StudyPlan, key_slices: Sequence[KeySlice], sources: Sequence[SourceImage], identifiers: Identifiers
) -> list[Dataset]:
    """One image for each key slice, numbered from 1 in their order."""
    return [
        _secondary_capture(plan, each, source, identifiers, number)
        for number, (each, source) in enumerate(zip(key_slices, sources, strict=True), start=1)
    ]


def _secondary_capture(
    plan: StudyPlan, each: KeySlice, source: SourceImage, identifiers: Identifiers, number: int
) -> Dataset:
    down, across = plan.grid.pixel_spacing
    words = title(each, plan.slices[each.z_index].slice_number)
    image = SCImage(
        pixel_array=with_words(each.image, words),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        pixel_spacing=(down, across),
        study_instance_uid=plan.study_uid,
        series_instance_uid=identifiers.uid("SC series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identifiers.uid("SC image", number),
        instance_number=number,
        series_description=f"cspine key slices, {WARNING.lower()}",
        **MAKER,
    )
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BodyPartExamined = "CSPINE"  # unpaired, so that no laterality is asked for
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "YES"
    image.ImageComments = f"{words}; {WARNING.lower()}"
    image.DerivationDescription = "CT slice at an intensity window of -500 to 1300 HU, heat map of fracture over it"
    image.SourceImageSequence = [_reference(source, turned=bool(plan.turn))]
    image.ReferencedSeriesSequence = [_series_of(source)]
    if source.image.get("FrameOfReferenceUID"):
        _place(image, plan, each.z_index, source)
    if source.image.get("LossyImageCompression") == "01":  # a loss stays a loss
        image.update(_elements(source, "LossyImageCompression"))
    return file_under(image, source)


def _reference(source: SourceImage, turned: bool) -> Dataset:
    item = _instance(source)
    if source.frame is not None:
        item.ReferencedFrameNumber = source.frame
    if not turned:
        item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _series_of(source: SourceImage) -> Dataset:
    """For the Common Instance Reference module (C.12.2)."""
    item = Dataset()
    item.SeriesInstanceUID = source.image.SeriesInstanceUID
    item.ReferencedInstanceSequence = [_instance(source)]
    return item


def _instance(source: SourceImage) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class, source.sop_uid
    return item


def _place(image: Dataset, plan: StudyPlan, z: int, source: SourceImage) -> None:
    """The Image Plane and Frame of Reference modules (C.7.6.2, C.7.4.1), of the canonical image."""
    image.ImagePositionPatient = _decimals(plan.grid.positions[z])
    image.ImageOrientationPatient = _decimals(plan.orientation)
    thickness = plan.slices[z].header.thickness
    image.SliceThickness = None if thickness is None else DS(thickness, auto_format=True)
    image.FrameOfReferenceUID = source.image.FrameOfReferenceUID
    image.PositionReferenceIndicator = source.image.get("PositionReferenceIndicator", "")


def _decimals(values: Sequence[float]) -> list[Any]:
    return [DS(float(np.round(value, 9)), auto_format=True) for value in values]


def _elements(source: SourceImage, prefix: str) -> dict[Any, Any]:
    return {element.tag: element for element in source.image if element.keyword.startswith(prefix)}
