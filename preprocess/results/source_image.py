"""What results take over from the files of the study that they are about: whose study it is, and which image is meant."""

import io
import re
from contextlib import suppress
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from cache_schema.errors import StudyRefused
from preprocess.headers.frames import unchanged
from preprocess.series.study_plan import StudyPlan
from preprocess.warnings_off import warnings_off

EVEN_IF_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""attributes of the Patient and General Study modules (DICOM PS3.3 C.7.1.1, C.7.2.1) of type 1 and 2"""

WHERE_PRESENT = (
    *("SpecificCharacterSet", "TimezoneOffsetFromUTC"),
    *("IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence"),
    *("OtherPatientNames", "PatientBirthTime", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("DeidentificationMethodCodeSequence", "StudyDescription", "IssuerOfAccessionNumberSequence"),
    *("ReferringPhysicianIdentificationSequence", "ProcedureCodeSequence"),
)
"""of the same modules and of SOP Common, of type 1C and 3: what an archive files by, and how the others are to be read"""

OF_THE_IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
DATES = ("Study", "Series", "Acquisition", "Content")
NO_DATE = ("19000101", "000000")


class SourceImage(NamedTuple):
    """filed_by: the attributes by which an archive files the study, in the source's character set, without private ones.
    image: OF_THE_IMAGE as far as present. frame: 1-based, None for a file of one image. moment: DICOM date and time."""

    filed_by: Dataset
    image: Dataset
    frame: int | None
    moment: tuple[str, str]

    @property
    def sop_class(self) -> str:
        return str(self.image.SOPClassUID)

    @property
    def sop_uid(self) -> str:
        return str(self.image.SOPInstanceUID)


def read_source(plan: StudyPlan, z: int) -> SourceImage:
    """The source of slice `z`, read again from its file. Raises StudyRefused where the file changed since it was planned, or
    lacks a UID."""
    header, file_number = plan.slices[z].header, str(plan.slices[z].file)
    wanted = [
        *EVEN_IF_EMPTY,
        *WHERE_PRESENT,
        *OF_THE_IMAGE,
        *(f"{each}{kind}" for each in DATES for kind in ("Date", "Time")),
    ]
    with warnings_off():
        try:
            with unchanged(header) as file:
                read = pydicom.dcmread(
                    io.BufferedReader(file), stop_before_pixels=True, force=True, specific_tags=list(wanted)
                )
                read.remove_private_tags()
                found = {keyword: read[keyword] for keyword in wanted if keyword in read}
        except StudyRefused as refused:
            raise StudyRefused(refused.reason, refused.what, study=plan.id, file=file_number) from None
        except Exception as error:  # pydicom fails in many ways on broken sequences, and its messages show values
            what = f"its patient's attributes cannot be read ({type(error).__name__})"
            raise StudyRefused("unreadable_header", what, study=plan.id, file=file_number) from None
    uids = {keyword: str(found[keyword].value or "") if keyword in found else "" for keyword in _UIDS}
    if "" in uids.values() or (uids["StudyInstanceUID"], uids["SOPInstanceUID"]) != (plan.study_uid, header.sop_uid):
        what = "a file lacks a UID that its results must name, or is of another study than planned"
        raise StudyRefused("source_changed", what, study=plan.id, file=file_number)
    filed_by = Dataset()
    for keyword in EVEN_IF_EMPTY:
        setattr(filed_by, keyword, "")
    filed_by.update({found[k].tag: found[k] for k in (*EVEN_IF_EMPTY, *WHERE_PRESENT) if k in found})
    image = Dataset()
    image.update({found[k].tag: found[k] for k in OF_THE_IMAGE if k in found})
    texts = {keyword: str(element.value or "") for keyword, element in found.items()}
    return SourceImage(filed_by, image, header.frame + 1 if header.frames > 1 else None, _moment(texts))


_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


def _moment(texts: dict[str, str]) -> tuple[str, str]:
    """The first date of DATES, and its time; NO_DATE where there is none."""
    for each in DATES:
        date, time = texts.get(f"{each}Date", ""), texts.get(f"{each}Time", "")
        if _is_a(DA, r"\d{8}", date):
            return date, time if _is_a(TM, r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", time) else NO_DATE[1]
    return NO_DATE


def _is_a(kind: type[DA | TM], pattern: str, text: str) -> bool:
    """The pattern alone lets 31 February pass."""
    with suppress(ValueError):
        return bool(re.fullmatch(pattern, text) and kind(text))
    return False
