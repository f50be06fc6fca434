"""A phantom's labels as NIfTI, through nibabel: any order and direction of axes, and the affine that says which."""

from pathlib import Path

import nibabel
import numpy as np

from preprocess.phantom.scanner import Scan


def write_segmentation(path: Path, labels: np.ndarray, scan: Scan, orientation: str) -> None:
    """Write `labels`, uint8 (slices, rows, columns) from head to feet, with array axes running towards `orientation`
    (such as "LAS" or "PIR").

    The affine maps array indices to RAS mm, DICOM's LPS with x and y negated.
    """
    affine = np.diag([-scan.pixel, -scan.pixel, -scan.spacing, 1.0])
    affine[:3, 3] = -scan.x, -scan.y, scan.z[0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)), affine)
    wanted = nibabel.orientations.axcodes2ornt(orientation)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    turned = image.as_reoriented(turn)
    made = nibabel.Nifti1Image(np.ascontiguousarray(turned.dataobj), turned.affine)
    made.header.set_xyzt_units("mm")
    made.set_qform(turned.affine, code=1)
    made.set_sform(turned.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(made, path)
