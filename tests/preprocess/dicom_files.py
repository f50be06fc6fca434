"""Small real DICOM and NIfTI files for tests, of any orientation, depth and transfer syntax."""

from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

STUDY = "1.2.826.0.1.3680043.8.498.1"
ROWS, COLUMNS = 24, 32
SPACING = (0.5, 0.5)
"""between rows, between columns: mm"""
FIRST = (-8.0, -6.0)
"""x and y of the first pixel of the canonical picture: mm"""


def picture(z: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """HU as int16 (rows, columns), without any symmetry, between -1000 and 1400, different for each z."""
    down, across = np.mgrid[:rows, :columns]
    values = -1000 + 37 * down + 13 * across + 500 * ((down < rows // 3) & (across < columns // 4)) + 11 * z
    values[2:6, columns // 2 : columns // 2 + 5] = 1400 - z
    return values.astype(np.int16)


def volume(slices: int) -> np.ndarray:
    """HU, (slices, ROWS, COLUMNS), head to feet."""
    return np.stack([picture(z) for z in range(slices)])


def expected_grey(hu: np.ndarray) -> np.ndarray:
    """The cache's grey values in plain float64 arithmetic."""
    return np.round((np.clip(hu.astype(float), -500, 1300) + 500) * 255 / 1800).astype(np.uint8)


def dataset(
    hu: np.ndarray,
    *,
    z: float = 0.0,
    number: int = 1,
    syntax: str = uid.ExplicitVRLittleEndian,
    bits: int = 16,
    signed: bool = True,
    study: str = STUDY,
    series: str = "1",
    kernel: str | None = None,
    remove: tuple[str, ...] = (),
    **fields,
) -> Dataset:
    """One CT slice: `hu` is stored as it lies, with position (FIRST, z) and axial orientation unless `fields` say
    otherwise.

    Unsigned slices have an intercept of -1024. `fields` overwrite elements by keyword, `remove` deletes them.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.CTImageStorage
    ds.SOPInstanceUID = f"{study}.{series}.{number}"
    ds.file_meta.TransferSyntaxUID = syntax
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "TEST", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName = "SECRET^NAME"
    ds.SliceThickness = "1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.{series}"
    ds.InstanceNumber = str(number)
    if kernel is not None:
        ds.ConvolutionKernel = kernel
    ds.ImagePositionPatient = [*FIRST, z]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = list(SPACING)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    ds.RescaleSlope, ds.RescaleIntercept = "1", "0" if signed else "-1024"
    stored = hu.astype(np.int16) if signed else (hu + 1024).astype(np.uint16)
    ds.PixelData, ds["PixelData"].VR = pixel_data(stored, syntax, bits)
    for keyword, value in fields.items():
        setattr(ds, keyword, value)
    for keyword in remove:
        delattr(ds, keyword)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    return ds


def dataset_of_frames(frames: list[bytes], image: np.ndarray, syntax: str, order: Sequence[int]) -> Dataset:
    """A file of many frames, each as it is encoded. image: in HU, one of them; order: their places, from the top, 2 mm apart."""
    ds = dataset(image, syntax=syntax, NumberOfFrames=str(len(frames)))
    ds.PixelData = encapsulate(frames) if uid.UID(syntax).is_encapsulated else b"".join(frames)
    ds.PerFrameFunctionalGroupsSequence = []
    for place in order:
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [-8, -6, 50 - 2 * place]
        group.PlanePositionSequence = [plane]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    return ds


def pixel_data(stored: np.ndarray, syntax: str, bits: int) -> tuple[bytes, str]:
    """Value and VR of PixelData for one frame of stored values."""
    frame = encode(stored, syntax, bits)
    if uid.UID(syntax).is_encapsulated:
        return encapsulate([frame]), "OB"
    return frame, "OW"


def encode(stored: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame in a transfer syntax; JPEG codecs see the bits of signed values as unsigned ones."""
    words = np.ascontiguousarray(stored).view(np.uint16)
    if bits < 16:
        words = words & ((1 << bits) - 1)
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        predictor = 1 if syntax == uid.JPEGLosslessSV1 else 6
        return imagecodecs.jpeg8_encode(words, lossless=True, predictor=predictor, bitspersample=bits)
    if syntax == uid.JPEG2000Lossless:
        source = stored if bits == 16 else words
        return imagecodecs.jpeg2k_encode(source, level=0, reversible=True, codecformat="j2k", bitspersample=bits)
    if syntax == uid.JPEGLSLossless:
        return imagecodecs.jpegls_encode(words)
    if syntax == uid.RLELossless:
        return _run_lengths(words)
    return words.astype(">u2" if syntax == uid.ExplicitVRBigEndian else "<u2").tobytes()


def _run_lengths(words: np.ndarray) -> bytes:
    segments = []
    for shift in (8, 0):
        packed = imagecodecs.packbits_encode(np.ascontiguousarray((words >> shift).astype(np.uint8)), axis=-1)
        segments.append(packed + b"\0" * (len(packed) % 2))
    head = np.zeros(16, "<u4")
    head[:3] = 2, 64, 64 + len(segments[0])
    return head.tobytes() + b"".join(segments)


def write(path: Path, ds: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    implicit = ds.file_meta.TransferSyntaxUID == uid.ImplicitVRLittleEndian
    little = ds.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian
    ds.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return path


def write_slice(path: Path, hu: np.ndarray | None = None, **changes) -> Path:
    return write(path, dataset(picture() if hu is None else hu, **changes))


def write_series(folder: Path, slices: int = 5, *, step: float = -2.0, start: float = 100.0, first: int = 1, **changes):
    """Files `<n>.dcm` of a whole series: number n at z = start + step * (n - first), and pictures 0, 1, ... from head
    to feet."""
    for k in range(slices):
        height = k if step < 0 else slices - 1 - k
        path = folder / f"{first + k}.dcm"
        write_slice(path, picture(height), **{"z": start + step * k, "number": first + k} | changes)
    return folder


def write_nifti(
    path: Path, labels: np.ndarray, positions: np.ndarray, orientation: str = "LAS", dtype=np.uint8
) -> Path:
    """Labels (n, rows, columns) head to feet on the grid of the canonical picture, with array axes towards
    `orientation`.

    `positions` are the heights of the slices, evenly spaced.
    """
    step = positions[1] - positions[0]
    affine = np.diag([-SPACING[1], -SPACING[0], step, 1.0])
    affine[:3, 3] = -FIRST[0], -FIRST[1], positions[0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)).astype(dtype), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(orientation)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


def plan_one(source):
    """(plan or None, {reason: severity}) of a source with one study."""
    plans, findings = plan_studies(source)
    assert len(plans) <= 1
    return (plans[0] if plans else None), {f.reason: f.severity for f in findings}


def grey(plan):
    return DicomPixels(plan).read(0, len(plan.slices))
