"""The studies of a source, decoded as they are read. Importing this costs nothing; pydicom and the decoders load with the first study."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache_schema.store_path import Place
    from cache_schema.study import Study
    from preprocess.findings import Finding
    from preprocess.series.study_plan import StudyPlan


def studies(
    source: str | Path, segmentations: str | Path | None = None, report: Callable[["Finding"], None] | None = None
) -> Iterator["Study"]:
    """The studies under `source` in the order of their ids, each decoding as it is read.

    source: the RSNA layout or any tree of DICOM files. segmentations: a folder of `<id>.nii` or `<id>.nii.gz`;
    `source`'s own `segmentations` where there is one. report: called with every Finding; refused studies are left
    out, and without `report` nothing tells so. A decoding failure raises StudyRefused from the study's `read`. Raises
    UsageError when a folder does not exist.
    """
    from cache_schema.errors import StudyRefused
    from preprocess.findings import Finding
    from preprocess.masks.names import find_segmentation
    from preprocess.series.planning import plan_studies

    tell = report or (lambda finding: None)
    folder = segmentation_folder(source, segmentations)
    plans, findings = plan_studies(source)
    for finding in findings:
        tell(finding)
    for plan in plans:
        try:
            study, findings = open_study(plan, find_segmentation(folder, plan.id))
        except StudyRefused as refused:
            tell(Finding(plan.id, refused.file or "", "refused", refused.reason, refused.what))
            continue
        for finding in findings:
            tell(finding)
        yield study


def segmentation_folder(source: str | Path, segmentations: str | Path | None) -> Path | None:
    """The folder to look for segmentations in, or None. Raises UsageError when the one named does not exist, or one that
    does cannot be listed."""
    from cache_schema.errors import UsageError
    from preprocess.masks.names import unlistable

    folder = Path(source) / "segmentations" if segmentations is None else Path(segmentations)
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        if segmentations is None:
            return None
        raise UsageError("no such folder", where=segmentations, expected="a folder of <id>.nii files") from None
    except OSError as error:
        raise unlistable(folder, error) from None
    return folder


def open_study(plan: "StudyPlan", segmentation: "str | Place | None" = None) -> tuple["Study", list["Finding"]]:
    """A planned study as a lazy Study, and what there is to say about its decoders and its segmentation (a refused one
    leaves the study without labels). The first slice of each kind is decoded here, twice, and images that share a place.

    `source_digest` of its record is "" until the files have been read: `study.pixels.source_digest()` gives it then.
    Raises StudyRefused when two decoders disagree, or the segmentation asks for slices that cannot be decoded.
    """
    from cache_schema.study import Study, StudyRecord
    from preprocess.headers.opened import on_disk
    from preprocess.pixels.decoder_cross_check import check_decoders
    from preprocess.pixels.same_position import choose_at_same_position
    from preprocess.pixels.study_pixels import DicomPixels

    plan, findings = choose_at_same_position(plan)
    pixels = DicomPixels(plan)
    boxes = ratios = None
    checked = check_decoders(pixels)
    flags = {finding.reason for finding in checked}
    findings += checked
    if segmentation is not None:
        from preprocess.masks.segmentation import read_segmentation  # and nibabel, which a bundle does not bring

        with on_disk(segmentation) as file:
            boxes, ratios, about = read_segmentation(file, plan, pixels.read)
        findings += about
    record = StudyRecord(
        id=plan.id,
        study_uid=plan.study_uid,
        series_uid=plan.series_uid,
        rows=plan.rows,
        columns=plan.columns,
        slices=len(plan.slices),
        spacing=plan.spacing,
        pixel_spacing=plan.grid.pixel_spacing,
        slice_spacing=plan.slice_spacing,
        orientation=plan.orientation,
        position=plan.position,
        transfer_syntax=plan.transfer_syntax,
        decoder=pixels.decoder,
        source_digest="",
        flags=tuple(sorted({*plan.flags, *flags})),
    )
    return Study(record, plan.z, plan.slice_number, pixels, slice_box=boxes, vertebra_ratio=ratios), findings
