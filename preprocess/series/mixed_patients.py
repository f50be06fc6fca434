"""Whether a study holds images of two patients; by hashes of PatientID, never by what it says."""

import os
from collections import Counter
from collections.abc import Sequence

from preprocess.headers.file_header import FileHeader


def has_two_patients(headers: Sequence[FileHeader]) -> bool:
    """By two PatientIDs of more than one CT image each; or, under one series UID, by folders of several images that hold
    one frame of reference each, not the same one."""
    images = [h for h in headers if h.modality in ("", "CT")]
    several = [patient for patient, count in _patients(images).items() if count > 1]
    return len(several) > 1 or any(_folders_differ(members) for members in _by_series(images).values())


def has_odd_patient_ids(headers: Sequence[FileHeader]) -> bool:
    """Whether PatientIDs differ, as where every file has one of its own."""
    return len(_patients([h for h in headers if h.modality in ("", "CT")])) > 1


def _patients(headers: Sequence[FileHeader]) -> Counter[bytes]:
    return Counter(h.marks.patient for h in headers if h.marks.patient)


def _by_series(headers: Sequence[FileHeader]) -> dict[str, list[FileHeader]]:
    series: dict[str, list[FileHeader]] = {}
    for header in headers:
        if header.series_uid:
            series.setdefault(header.series_uid, []).append(header)
    return series


def _folders_differ(headers: Sequence[FileHeader]) -> bool:
    folders: dict[str, list[str]] = {}
    for header in headers:
        folders.setdefault(os.path.dirname(header.path), []).append(header.marks.frame_of_reference)
    frames = {frames[0] for frames in folders.values() if len(frames) > 1 and frames[0] and len(set(frames)) == 1}
    return len(frames) > 1
