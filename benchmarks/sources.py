"""The data of the benchmarks: phantom studies and the GE head, as JPEG Lossless and uncompressed."""

import os
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from preprocess.phantom.generate import write_phantom

REALCT = Path(os.environ.get("CSPINE_REALCT") or Path(__file__).resolve().parents[1] / ".." / "shared" / "realct")


def write_sources(folder: Path, studies: int, slices: int, copies: int = 1) -> dict[str, Path]:
    """A source in the RSNA layout for each syntax: `studies` phantoms, and the GE head if its files exist.

    Each phantom is there again in `copies` under other names, to reduce the weight of a build's fixed cost. The phantoms'
    segmentations lie in `masks`, where a build does not look for them.
    """
    plain, packed = folder / "explicit", folder / "sv1"
    write_phantom(plain, studies, slices, studies, syntax="explicit", progress=False)
    (plain / "segmentations").rename(plain / "masks")
    for folder in sorted((plain / "train_images").iterdir()):
        for _ in range(copies):
            copy_under_another_name(folder)
    for file in (REALCT / "ge_head").glob("*.dcm"):
        uid = str(pydicom.dcmread(file, stop_before_pixels=True).StudyInstanceUID)
        target = plain / "train_images" / uid / f"{int(file.stem)}.dcm"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    for file in plain.rglob("*.dcm"):
        target = packed / file.relative_to(plain)
        target.parent.mkdir(parents=True, exist_ok=True)
        to_jpeg_lossless(pydicom.dcmread(file)).save_as(target, enforce_file_format=True)
    return {"sv1": packed, "explicit": plain}


def copy_under_another_name(study: Path) -> None:
    """Copies a study's files with another StudyInstanceUID of the same length, beside its folder."""
    uid = study.name
    copy_study(study, next(to for digit in "123456789" if not (to := study.with_name(uid[:-1] + digit)).exists()))


def copy_study(study: Path, to: Path) -> None:
    """Copies the files of a study's folder, which has its StudyInstanceUID for a name. to: named after another UID, as long."""
    to.mkdir(parents=True)
    for file in study.iterdir():
        (to / file.name).write_bytes(file.read_bytes().replace(study.name.encode(), to.name.encode()))


def to_jpeg_lossless(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Encodes a 16-bit slice by libjpeg-turbo with predictor 1: transfer syntax .70."""
    words = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    frame = imagecodecs.jpeg8_encode(words, lossless=True, predictor=1, bitspersample=dataset.BitsStored)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].VR = "OB"
    return dataset
