"""A phantom study as DICOM files of the RSNA layout, through pydicom; the header never depends on what is broken."""

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from preprocess.phantom.scanner import SIZE, Scan
from preprocess.phantom.seeds import Stream, stream

UID_ROOT = "1.2.826.0.1.3680043."
SYNTAX_UIDS = {"sv1": JPEGLosslessSV1, "explicit": ExplicitVRLittleEndian, "j2k": JPEG2000Lossless, "rle": RLELossless}
SYNTAXES = ("mixed", *SYNTAX_UIDS)
FOUR, FOUR_MORE = ("sv1", "explicit", "rle", "j2k"), ("sv1", "explicit", "sv1", "explicit")
"""Eight studies of a mixed set: every syntax among the first four, JPEG 2000 once because it is slow."""
PRIME = 999_983


@dataclass(frozen=True)
class FilePlan:
    """How a study is stored: a function of (seed, index, syntax), never of its labels."""

    study_uid: str
    syntax: str
    bits: int
    head_first: bool
    orientation: str
    """Directions of the NIfTI array's axes, as nibabel writes them."""


ORIENTATIONS = ("LAS", "PIR", "RAS", "ASL", "LAS", "LPS", "LAS", "RPI")
"""Of eight studies: the competition's own (left, anterior, superior; its planes along the first axis are sagittal)
most often."""


def plan_files(seed: int, index: int, syntax: str = "mixed") -> FilePlan:
    """Syntax, depth, direction and NIfTI orientation of study `index`; neighbours differ, so that a few studies hold
    every kind."""
    block, place = divmod(index, 8)
    rng = stream(seed, Stream.FILES, block, 1)
    halves = [rng.permutation(FOUR), rng.permutation(FOUR_MORE)]
    orientation = np.concatenate([rng.permutation(ORIENTATIONS[:4]), rng.permutation(ORIENTATIONS[4:])])[place]
    mixed = np.concatenate(halves)[place]
    first = int(stream(seed, Stream.FILES).integers(PRIME))
    number = 1000 + (first + 613_651 * index) % PRIME
    return FilePlan(
        study_uid=f"{UID_ROOT}{number}",
        syntax=str(mixed) if syntax == "mixed" else syntax,
        bits=12 if (place // 2 + block) % 2 == 0 else 16,
        head_first=(index + first) % 2 == 0,
        orientation=str(orientation),
    )


def write_dicom(folder: Path, hu: np.ndarray, scan: Scan, plan: FilePlan) -> list[Path]:
    """Write `hu`, int16 (slices, 512, 512) from head to feet, as folder/1.dcm ... n.dcm, numbered in the plan's
    direction."""
    folder.mkdir(parents=True, exist_ok=True)
    order = range(len(hu)) if plan.head_first else range(len(hu) - 1, -1, -1)
    paths = []
    for number, k in enumerate(order, start=1):
        dataset = _header(scan, plan, number, float(scan.z[k]))
        _store_pixels(dataset, hu[k], plan)
        path = folder / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _header(scan: Scan, plan: FilePlan, number: int, z: float) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID(f"{plan.study_uid}.1.{number}")
    ds.file_meta.TransferSyntaxUID = SYNTAX_UIDS[plan.syntax]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{plan.study_uid}.1.{number}"
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Modality = "CT"
    ds.Manufacturer = "PHANTOM"
    ds.PatientName = f"PHANTOM^{plan.study_uid.removeprefix(UID_ROOT)}"
    ds.PatientID = plan.study_uid.removeprefix(UID_ROOT)
    ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ""
    ds.BodyPartExamined = "CSPINE"
    ds.SliceThickness = f"{scan.spacing:.6g}"
    ds.KVP = "120"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = plan.study_uid
    ds.SeriesInstanceUID = f"{plan.study_uid}.1"
    ds.FrameOfReferenceUID = f"{plan.study_uid}.2"
    ds.PositionReferenceIndicator = ""
    ds.SeriesNumber = "1"
    ds.InstanceNumber = str(number)
    ds.ImagePositionPatient = [f"{value:.6f}" for value in (scan.x, scan.y, z)]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing = [f"{scan.pixel:.10f}"] * 2
    ds.WindowCenter, ds.WindowWidth = "400", "1800"
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024" if plan.bits == 12 else "0", "HU"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, plan.bits, plan.bits - 1
    ds.PixelRepresentation = 0 if plan.bits == 12 else 1
    return ds


def _store_pixels(ds: Dataset, hu: np.ndarray, plan: FilePlan) -> None:
    stored = (hu + 1024).astype("<u2") if plan.bits == 12 else hu.astype("<i2")
    if plan.syntax == "sv1":
        # the predictor must be 1 for this transfer syntax; other lossless encoders choose another
        frame = imagecodecs.jpeg8_encode(stored.view("<u2"), lossless=True, predictor=1, bitspersample=plan.bits)
    elif plan.syntax == "j2k":
        frame = imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, codecformat="j2k", bitspersample=plan.bits)
    elif plan.syntax == "rle":
        frame = _run_lengths(stored)
    else:
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OW"
        return
    ds.PixelData = encapsulate([bytes(frame)])
    ds["PixelData"].VR = "OB"


def _run_lengths(stored: np.ndarray) -> bytes:
    """One RLE frame (DICOM PS3.5 annex G): a header of 16 words, then the high bytes and the low bytes, packed row by
    row."""
    segments = []
    for shift in (8, 0):
        packed = imagecodecs.packbits_encode(
            np.ascontiguousarray((stored.view("<u2") >> shift).astype(np.uint8)), axis=-1
        )
        segments.append(bytes(packed) + b"\0" * (len(packed) % 2))
    header = np.zeros(16, "<u4")
    header[:3] = len(segments), 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)
