"""Masks as files: read forwards in little memory whatever they hold, and whatever is wrong costs the mask alone."""

import gzip
import struct
import subprocess
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest
from dicom_files import write_nifti, write_slice
from tiny_rsna import HEIGHTS, PREFIX, SLICES, labels_of, write_study

from cache_schema.errors import StudyRefused
from preprocess import studies
from preprocess.findings import STUDY_KEPT
from preprocess.masks.nifti_file import SegmentationRefused, read_labels
from preprocess.masks.segmentation import place_labels, read_segmentation
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

STUDY = f"{PREFIX}.1"


@pytest.fixture
def plan(tmp_path):
    write_study(tmp_path, 1)
    return plan_studies(tmp_path)[0][0]


@pytest.fixture
def nifti(tmp_path):
    return write_nifti(tmp_path / "segmentations" / f"{STUDY}.nii", labels_of(1), HEIGHTS, "LAS")


def saved_as(nifti, path, dtype):
    image = nibabel.load(nifti)
    values = np.array(image.dataobj)
    if dtype.names:
        filled = np.zeros(values.shape, dtype)
        filled[dtype.names[0]] = values
    else:
        filled = values.astype(dtype)
    nibabel.save(nibabel.Nifti1Image(filled, image.affine, dtype=dtype), path)
    return path


def change(path, place, content):
    whole = bytearray(path.read_bytes())
    whole[place : place + len(content)] = content
    path.write_bytes(whole)
    return path


def refusal(path):
    with pytest.raises(SegmentationRefused) as refused:
        read_labels(path)
    assert refused.value.reason in STUDY_KEPT and str(path) not in refused.value.message
    return refused.value.reason


def labels_on_slices(path, plan):
    pictures, _, findings = place_labels(path, plan)
    assert findings == []
    return np.stack([pictures(z) for z in range(SLICES)])


COLOURS = [np.dtype([(name, "u1") for name in names]) for names in ("RGB", "RGBA")]


@pytest.mark.parametrize("dtype", [*COLOURS, np.dtype(np.complex64), np.dtype(np.complex128)], ids=str)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_colours_and_complex_numbers_cost_the_mask_and_keep_the_study(tmp_path, nifti, plan, dtype, suffix):
    path = nifti.with_suffix(suffix) if suffix == ".nii" else nifti.with_name(f"{STUDY}.nii.gz")
    saved_as(nifti, path, dtype)
    if path != nifti:
        nifti.unlink()
    findings = []
    (study,) = studies(tmp_path, report=findings.append)
    assert study.slice_box is None
    assert [(f.reason, f.severity, f.refuses_study) for f in findings] == [("segmentation_labels", "refused", False)]


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", ">u4", "i8", "u8", "f4", ">f4", "f8", ">f8"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".NII.GZ"])
def test_numbers_of_every_type_and_both_versions_give_the_labels(tmp_path, nifti, plan, dtype, kind, suffix):
    image = nibabel.load(nifti)
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    made = kind(np.asarray(image.dataobj).astype(dtype), image.affine, header, dtype=dtype)
    path = tmp_path / f"a{suffix}"
    content = made.to_bytes()
    path.write_bytes(gzip.compress(content, 1) if suffix == ".NII.GZ" else content)
    assert np.array_equal(labels_on_slices(path, plan), labels_of(1))


def test_what_is_packed_is_seen_in_the_file_not_its_name(tmp_path, nifti, plan):
    packed, plain = tmp_path / "packed.nii", tmp_path / "plain.nii.gz"
    packed.write_bytes(gzip.compress(nifti.read_bytes()))
    plain.write_bytes(nifti.read_bytes())
    for path in (packed, plain):
        assert np.array_equal(labels_on_slices(path, plan), labels_of(1))


def test_noise_and_a_slope_that_is_no_number_are_no_matter(tmp_path, nifti, plan):
    image = nibabel.load(nifti)
    noise = np.random.default_rng(0).uniform(-0.04, 0.04, image.shape)
    nibabel.save(nibabel.Nifti1Image((image.dataobj + noise).astype(np.float32), image.affine), tmp_path / "noise.nii")
    assert np.array_equal(labels_on_slices(tmp_path / "noise.nii", plan), labels_of(1))
    change(nifti, 112, struct.pack("<2f", np.nan, np.nan))
    assert np.array_equal(labels_on_slices(nifti, plan), labels_of(1))


@pytest.mark.parametrize("values", [-1, 256, 300, 70000])
def test_whole_numbers_that_are_no_labels_are_refused(tmp_path, nifti, values):
    image = nibabel.load(nifti)
    labels = np.array(image.dataobj).astype(np.int32)
    labels[0, 0, 0] = values
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), nifti)
    assert refusal(nifti) == "segmentation_labels"


def test_a_packed_file_is_read_to_its_checksum(tmp_path, nifti):
    packed = gzip.compress(nifti.read_bytes())
    for broken in (packed[:-9], packed[:-1], packed[:-8] + b"\0\0\0\0" + packed[-4:], packed[: len(packed) // 2]):
        (tmp_path / "a.nii.gz").write_bytes(broken)
        assert refusal(tmp_path / "a.nii.gz") == "segmentation_unreadable"


def test_a_mask_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 600))
    header.set_data_dtype(np.float64)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(header.binaryblock)
    assert refusal(tmp_path / "a.nii.gz") == "segmentation_too_large"


def test_voxels_in_a_file_of_their_own_are_not_looked_for_in_the_header(nifti):
    assert refusal(change(nifti, 344, b"ni1\0")) == "segmentation_unreadable"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_a_big_mask_is_read_in_little_memory(tmp_path, dtype, packed):
    shape = (256, 256, 320)
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    plane = np.zeros(shape[:2], dtype, order="F")
    with (gzip.open if packed else open)(tmp_path / "a.nii", "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for k in range(shape[2]):
            plane[100:150, 110:140] = k % 8
            file.write(plane.tobytes(order="F"))
    tracemalloc.start()
    volume = read_labels(tmp_path / "a.nii")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.labels.shape == (50, 30, 319) and volume.first == (100, 110, 1) and volume.shape == shape
    assert np.array_equal(volume.labels[7, 9], np.arange(1, 320) % 8)
    assert peak < 14e6 < np.prod(shape) * np.dtype(dtype).itemsize


LITTLE_MEMORY = """
import resource, sys
import numpy
from preprocess.series.planning import plan_studies
from preprocess.masks.segmentation import read_segmentation
plan = plan_studies(sys.argv[1])[0][0]
numpy.ones((99, 99)) @ numpy.linalg.inv(numpy.eye(99))  # OpenBLAS takes its own memory with the first call, or ends the process
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)
boxes, ratios, (finding,) = read_segmentation(sys.argv[2], plan)
print(boxes, finding.severity, finding.reason, finding.message, sep="; ")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_mask_for_which_memory_does_not_suffice_is_refused(tmp_path, plan):
    labels = np.ones((512, 512, 256), np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii")
    command = [sys.executable, "-c", LITTLE_MEMORY, tmp_path / "train_images", tmp_path / "a.nii"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = "None; refused; segmentation_too_large; needs more memory than is available\n"
    assert done.stdout == said, done.stderr


def test_no_change_of_a_header_raises_or_prints(nifti, plan, capfd):
    random = np.random.default_rng(7)
    whole = nifti.read_bytes()
    read = DicomPixels(plan).read
    for _ in range(150):
        place, value = int(random.integers(0, 352)), int(random.integers(0, 256))
        change(nifti, place, bytes([value, int(random.integers(0, 256))]))
        boxes, ratios, findings = read_segmentation(nifti, plan, read)
        assert (boxes is None) == (ratios is None) == any(finding.severity == "refused" for finding in findings)
        assert all(finding.reason in STUDY_KEPT and "\n" not in finding.message for finding in findings)
        nifti.write_bytes(whole)
    assert capfd.readouterr().err == ""


def test_a_fault_of_the_study_met_while_its_mask_is_checked_is_the_studys(nifti, plan):
    write_slice(nifti.parents[1] / "train_images" / STUDY / "3.dcm", z=HEIGHTS[2], number=3)
    with pytest.raises(StudyRefused) as refused:
        read_segmentation(nifti, plan, DicomPixels(plan).read)
    assert refused.value.reason == "source_changed"
