"""What is known about a phantom, in a form that checks can read: OUT/truth/<uid>.json and OUT/truth/<uid>.npz."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cache_schema.layout import LEVELS
from preprocess.phantom.dicom import FilePlan
from preprocess.phantom.study import PhantomStudy


def describe(study: PhantomStudy, plan: FilePlan) -> dict:
    """The truth as plain values. z indices count from the head, with exclusive ends; boxes are native pixels x0, y0,
    x1, y1, ends exclusive."""
    scan = study.scan
    levels = {}
    for n, name in enumerate(LEVELS, start=1):
        inside = np.flatnonzero((study.labels == n).any(axis=(1, 2)))
        about: dict[str, Any] = {
            "z_from": int(inside[0]) if inside.size else None,
            "z_to": int(inside[-1]) + 1 if inside.size else None,
            "fractured": n in study.fractures,
        }
        if n in study.fractures:
            about["fracture"] = _describe_fracture(study, n)
        levels[name] = about
    return {
        "study_uid": plan.study_uid,
        "seed": study.seed,
        "index": study.index,
        "levels": levels,
        "study_box": study_box(study.labels),
        "pixel_mm": scan.pixel,
        "slice_mm": scan.spacing,
        "first_pixel_mm": [scan.x, scan.y],
        "z_mm": [float(z) for z in scan.z],
        "noise_hu": scan.noise,
        "syntax": plan.syntax,
        "bits_stored": plan.bits,
        "head_first": plan.head_first,
        "nifti_orientation": plan.orientation,
    }


def study_box(labels: np.ndarray) -> dict[str, int] | None:
    """The box around all of C1..C7 in `labels` (slices, rows, columns), and the slices they take; exclusive ends."""
    neck = (labels > 0) & (labels <= len(LEVELS))
    z, y, x = (np.flatnonzero(neck.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    if z.size == 0:
        return None
    names = ("x0", "x1", "y0", "y1", "z_from", "z_to")
    return dict(zip(names, (int(v) for a in (x, y, z) for v in (a[0], a[-1] + 1)), strict=True))


def _describe_fracture(study: PhantomStudy, level: int) -> dict:
    fracture, vertebra = study.fractures[level], study.person.vertebrae[level - 1]
    return {
        "kind": fracture.kind,
        "point_mm": [float(v) for v in vertebra.to_patient(fracture.point[None])[0]],
        "normal": [float(v) for v in vertebra.rotation @ fracture.normal],
        "shift_mm": [float(v) for v in vertebra.rotation @ fracture.shift * vertebra.scale],
        "gap_mm": float(fracture.gap * vertebra.scale),
    }


def write_truth(folder: Path, study: PhantomStudy, plan: FilePlan) -> None:
    """Write the description and the label volume (npz, key `labels`, head to feet) of one study."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{plan.study_uid}.json").write_text(json.dumps(describe(study, plan), indent=1) + "\n")
    np.savez_compressed(folder / f"{plan.study_uid}.npz", labels=study.labels)
