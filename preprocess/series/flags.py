"""Flags of a planned study: what is odd, but no reason to refuse it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from preprocess.decoders import LOSSY_SYNTAXES
from preprocess.findings import REASONS
from preprocess.headers.file_header import FileHeader
from preprocess.series.geometry import TILT_DEGREES, degrees_from_axial
from preprocess.series.study_plan import StudyPlan

SAME_SPACING = 1e-3
EVEN_SPACING = 0.05
"""Distances that differ by less than this share of their median, or 0.02 mm (rounding of positions), count as
even."""
ROUNDING = 0.02
GAP = 1.9
"""So many usual distances mean a missing slice; deliberate changes of thickness stay below (GE head: 7 mm after
4)."""

DICOM_UID = re.compile(r"(?=.{1,64}\Z)(0|[1-9]\d*)(\.(0|[1-9]\d*))*", re.ASCII)
"""DICOM PS3.5 9.1: digits and dots, no leading zeros, 64 characters."""


def study_flags(plan: StudyPlan) -> Iterable[tuple[str, str]]:
    """(flag, message) for everything that a plan's slices themselves show."""
    headers = [s.header for s in plan.slices]
    uids = [plan.study_uid, plan.series_uid, *(h.sop_uid for h in headers)]
    invalid = sum(DICOM_UID.fullmatch(uid) is None for uid in uids)
    if invalid:
        message = f"{invalid} of the {len(uids)} UIDs of study, series and slices do not follow DICOM's rules"
        yield "invalid_uid", message
    images = [(h.sop_uid, h.frame) for h in headers if h.sop_uid]
    if len(set(images)) < len(images):
        yield "repeated_sop_uid", REASONS["repeated_sop_uid"]
    if not (_monotone(plan.slice_number) and _names_follow(headers)):
        yield "file_order", REASONS["file_order"]
    if len(headers) == 1:
        yield "single_slice", REASONS["single_slice"]
    degrees = degrees_from_axial(headers[0].orientation)
    if degrees > TILT_DEGREES:
        yield "gantry_tilt", f"the slice normal is tilted by {degrees:.1f} degrees"
    yield from _spacing_flags(plan)
    down, across = plan.grid.pixel_spacing
    if abs(down / across - 1) > SAME_SPACING:
        yield "non_square", f"pixels are {down:g} x {across:g} mm"
    if any(h.photometric == "MONOCHROME1" for h in headers):
        yield "monochrome1", REASONS["monochrome1"]
    if plan.turn:
        steps = [name for name in ("transpose", "flip_rows", "flip_columns") if getattr(plan.turn, name)]
        yield "turned", f"turned into the canonical image by {', '.join(steps)}"
    if any(h.frames > 1 for h in headers):
        yield "multi_frame", REASONS["multi_frame"]
    if any(h.transfer_syntax in LOSSY_SYNTAXES for h in headers):
        yield "lossy", REASONS["lossy"]


def _spacing_flags(plan: StudyPlan) -> Iterable[tuple[str, str]]:
    spacing = plan.slice_spacing
    if spacing is None:
        return
    if spacing["max"] - spacing["min"] > max(ROUNDING, EVEN_SPACING * spacing["median"]):
        yield (
            "uneven_spacing",
            "distances between slices: {min:.2f} to {max:.2f} mm, median {median:.2f}".format(**spacing),
        )
    steps = -np.diff(plan.z)
    gaps = int((steps >= GAP * spacing["median"]).sum())
    if gaps:
        yield "gaps", f"{gaps} distances are at least {GAP:g} times the median: slices seem to be missing"


def _monotone(values: np.ndarray) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _names_follow(headers: Sequence[FileHeader]) -> bool:
    """Whether file names that count (one stem, then up to six digits) count in the order of `headers`, up or down."""
    found = [re.fullmatch(r"(.*?)(\d{1,6})", Path(h.path).stem) for h in headers if h.frames == 1]
    names = [name for name in found if name is not None]
    if len(names) < len(headers) or len({name[1] for name in names}) > 1:
        return True
    return _monotone(np.array([int(name[2]) for name in names]))
