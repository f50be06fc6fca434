"""Chooses the slice among several different images at one position."""

from dataclasses import replace

from cache_schema.errors import StudyRefused
from preprocess.findings import Finding
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.flags import study_flags
from preprocess.series.study_plan import SlicePlan, StudyPlan


def choose_at_same_position(plan: StudyPlan) -> tuple[StudyPlan, list[Finding]]:
    """The plan with one image at each place, and what there is to say of the others: of several the first that decodes
    whole. Only images of places that hold several are decoded."""
    if not any(place.alternatives for place in plan.slices):
        return plan, []
    pixels = DicomPixels(plan)
    slices = tuple(_that_decodes(place, pixels) if place.alternatives else place for place in plan.slices)
    kept = {(place.path, place.frame) for place in slices}
    left = sorted({image.file for image in plan.images if (image.path, image.frame) not in kept})
    names = ("file " if len(left) == 1 else "files ") + ", ".join(map(str, left))
    count = len(plan.images) - len(slices)
    message = (
        f"{count} of {len(plan.images)} images have the position of another one and differ from it; left out: {names}"
    )
    first = next(image for image in plan.images if image.file == left[0])
    findings = [Finding(plan.id, str(first.file), "repaired", "repeated_position", message, first.path)]
    chosen = replace(plan, slices=slices)
    new = {flag: text for flag, text in study_flags(chosen) if flag not in plan.flags}
    findings += [Finding.of_study(plan.id, "flagged", flag, text) for flag, text in new.items()]
    return replace(chosen, flags=tuple(sorted({*plan.flags, *new}))), findings


def _that_decodes(place: SlicePlan, pixels: DicomPixels) -> SlicePlan:
    """Where none does, the first: reading it says why."""
    candidates = (replace(place, alternatives=()), *place.alternatives)
    used = {other.slice_number for other in pixels.plan.slices if other is not place}
    for candidate in candidates:
        if not candidate.header.problems and _decodes(candidate, pixels):
            number = candidate.slice_number if candidate.slice_number not in used else place.slice_number
            return replace(candidate, slice_number=number)
    return candidates[0]


def _decodes(place: SlicePlan, pixels: DicomPixels) -> bool:
    try:
        pixels.stored(place.header)
    except StudyRefused:
        return False
    return True
