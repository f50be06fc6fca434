"""NIfTI segmentations: read by their affine in any storage order, checked without truth, refused for labels when they
disagree."""

import nibabel
import numpy as np
import pytest
from dicom_files import COLUMNS, ROWS, STUDY, dataset, write, write_nifti, write_series, write_slice

from preprocess import open_study, segmentation_folder, studies
from preprocess.findings import STUDY_KEPT
from preprocess.masks.names import find_segmentation
from preprocess.masks.segmentation import place_labels, read_segmentation, vertebra_ratios
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

SLICES, STEP, TOP = 16, 2.0, 100.0
HEIGHTS = TOP - STEP * np.arange(SLICES)


def spine() -> np.ndarray:
    """Labels (SLICES, ROWS, COLUMNS), head to feet: C1..C7 of two slices each from slice 1 on, T1 (8) below, shifting
    and growing downwards, off the middle in every direction."""
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    for level in range(1, 9):
        for z in (2 * level - 1, 2 * level):
            if z < SLICES:
                labels[z, 12 : 17 + level // 4, 3 + level : 9 + level] = level
                labels[z, 12, 3 + level] = 0 if z % 2 else level
    return labels


def bony(labels: np.ndarray) -> np.ndarray:
    """HU (SLICES, ROWS, COLUMNS): bone where the labels are, with noise, soft tissue elsewhere."""
    noise = np.random.default_rng(3).normal(0, 20, labels.shape)
    return (np.where(labels > 0, 700, 40) + noise).astype(np.int16)


def write_study(folder, step=-STEP, turn=False, hu=None, remove=()):
    hu = bony(spine()) if hu is None else hu
    for k in range(SLICES):
        z = k if step < 0 else SLICES - 1 - k
        changes = {"z": HEIGHTS[z], "number": k + 1, "remove": remove}
        picture = hu[z]
        if turn:  # stored upside down: rows run to the front
            picture = picture[::-1]
            changes |= {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}
            changes |= {"ImagePositionPatient": [-8, -6 + 0.5 * (ROWS - 1), HEIGHTS[z]]}
        write_slice(folder / f"{k + 1}.dcm", np.ascontiguousarray(picture), **changes)
    return plan_studies(folder)[0][0]


def labels_on_grid(nifti, plan):
    pictures, _, findings = place_labels(nifti, plan)
    return np.stack([pictures(z) for z in range(len(plan.slices))]), findings


def expected_boxes(labels):
    boxes = []
    for picture in labels:
        rows, columns = np.nonzero((picture > 0) & (picture < 8))
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [-1] * 4)
    return np.array(boxes)


def read(nifti, plan):
    return read_segmentation(nifti, plan, DicomPixels(plan).read)


def refusal(nifti, plan):
    boxes, ratios, (finding,) = read(nifti, plan)
    assert boxes is None and ratios is None and (finding.id, finding.severity) == (plan.id, "refused")
    assert finding.reason in STUDY_KEPT and finding.path == str(nifti)
    return finding.reason


@pytest.mark.parametrize("orientation", ["LAS", "RAS", "LPS", "RPI", "PIR", "ASL", "SRA", "IPL"])
@pytest.mark.parametrize("step", [-STEP, STEP])
@pytest.mark.parametrize("turn", [False, True])
def test_any_storage_order_gives_the_same_labels(tmp_path, orientation, step, turn):
    plan = write_study(tmp_path / "dicom", step, turn)
    nifti = write_nifti(tmp_path / "a.nii", spine(), HEIGHTS, orientation)
    labels, findings = labels_on_grid(nifti, plan)
    assert findings == [] and np.array_equal(labels, spine())
    boxes, ratios, findings = read(nifti, plan)
    assert findings == [] and boxes.dtype == np.int16 and np.array_equal(boxes, expected_boxes(spine()))
    assert ratios.dtype == np.float32 and ratios.shape == (SLICES, 7)


def test_ratios_are_shares_of_the_fullest_slice():
    pixels = np.zeros((4, 7), int)
    pixels[1, 2], pixels[2, 2], pixels[3, 6] = 10, 5, 1
    ratios = vertebra_ratios(pixels)
    assert ratios[:, 2].tolist() == [0, 1, 0.5, 0] and ratios.sum() == 2.5


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_may_be_stored_as_any_number(tmp_path, dtype, suffix):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / f"a{suffix}", spine(), HEIGHTS, dtype=dtype)
    assert np.array_equal(labels_on_grid(nifti, plan)[0], spine())


def test_scaled_labels_are_scaled(tmp_path):
    plan = write_study(tmp_path / "dicom")
    image = nibabel.load(write_nifti(tmp_path / "a.nii", spine(), HEIGHTS))
    twice = nibabel.Nifti1Image(np.asarray(image.dataobj) * 2.0, image.affine)
    twice.header.set_data_dtype(np.uint8)
    nibabel.save(twice, tmp_path / "b.nii")
    assert nibabel.load(tmp_path / "b.nii").dataobj.slope != 1
    assert np.array_equal(labels_on_grid(tmp_path / "b.nii", plan)[0], 2 * spine())


def test_a_segmentation_cut_to_the_neck_still_fits_by_its_affine(tmp_path):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / "a.nii", spine()[:12], HEIGHTS[:12])
    labels, findings = labels_on_grid(nifti, plan)
    assert findings == [] and np.array_equal(labels[:12], spine()[:12]) and not labels[12:].any()


def test_a_tilted_study_is_met_by_a_sheared_affine(tmp_path):
    tilt = np.radians(15)
    down = np.array([0, np.cos(tilt), -np.sin(tilt)])
    hu = bony(spine())
    for k in range(SLICES):
        place = {"ImagePositionPatient": [-8, -6, HEIGHTS[k]], "ImageOrientationPatient": [1, 0, 0, *down]}
        place = {name: [f"{value:.8f}" for value in values] for name, values in place.items()}
        write_slice(tmp_path / "dicom" / f"{k + 1}.dcm", hu[k], number=k + 1, **place)
    plan = plan_studies(tmp_path / "dicom")[0][0]
    assert "gantry_tilt" in plan.flags
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = [0.5, 0, 0], 0.5 * down, [0, 0, -STEP], [-8, -6, TOP]
    to_ras = np.diag([-1, -1, 1, 1])
    nibabel.save(nibabel.Nifti1Image(spine().transpose(2, 1, 0), to_ras @ affine), tmp_path / "a.nii")
    assert np.array_equal(labels_on_grid(tmp_path / "a.nii", plan)[0], spine())


@pytest.mark.parametrize("step", [-STEP, STEP])
@pytest.mark.parametrize("turn", [False, True])
def test_without_a_fitting_affine_the_competitions_flips_are_used_and_flagged(tmp_path, step, turn):
    plan = write_study(tmp_path / "dicom", step, turn)
    # (x, y, z) with y upside down; z runs upwards whatever way the files are numbered (reference 3.1)
    stored = spine()[:, ::-1] if turn else spine()
    raw = stored[::-1].transpose(2, 1, 0)[:, ::-1]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(raw), np.diag([1.0, 1.0, 1.0, 1.0])), tmp_path / "a.nii")
    boxes, _, (finding,) = read(tmp_path / "a.nii", plan)
    assert (finding.reason, finding.severity) == ("segmentation_by_fixed_flips", "flagged")
    assert np.array_equal(boxes, expected_boxes(spine()))


def test_another_shape_elsewhere_is_refused(tmp_path):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / "a.nii", spine()[:12], HEIGHTS[:12] + 1000)
    assert refusal(nifti, plan) == "segmentation_geometry"


def test_levels_upside_down_are_refused(tmp_path):
    plan = write_study(tmp_path / "dicom", hu=bony(spine()[::-1]))
    nifti = write_nifti(tmp_path / "a.nii", spine()[::-1], HEIGHTS)
    assert refusal(nifti, plan) == "segmentation_upside_down"


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_mirrored_labels_are_refused(tmp_path, axes):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / "a.nii", np.flip(spine(), axes), HEIGHTS)
    assert refusal(nifti, plan) == "segmentation_mirrored"


def test_levels_numbered_from_below_on_a_mirrored_volume_are_refused(tmp_path):
    flipped = np.flip(spine(), 0)
    renamed = np.where((flipped > 0) & (flipped < 8), 8 - flipped, flipped).astype(np.uint8)
    plan = write_study(tmp_path / "dicom")
    assert refusal(write_nifti(tmp_path / "a.nii", renamed, HEIGHTS), plan) == "segmentation_mirrored"


def test_a_symmetric_neck_in_the_middle_is_no_mirrored_one(tmp_path):
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    for level in range(1, 8):
        labels[2 * level - 1 : 2 * level + 1, 5:9, 12:20] = level
    plan = write_study(tmp_path / "dicom", hu=bony(labels))
    boxes, _, findings = read(write_nifti(tmp_path / "a.nii", labels, HEIGHTS), plan)
    assert findings == [] and boxes[3].tolist() == [12, 5, 20, 9]


@pytest.mark.parametrize("content", [b"", b"no NIfTI", b"\x5c\x01\0\0" + b"\0" * 400])
def test_a_file_that_is_no_nifti_is_refused(tmp_path, content):
    plan = write_study(tmp_path / "dicom")
    (tmp_path / "a.nii").write_bytes(content)
    assert refusal(tmp_path / "a.nii", plan) == "segmentation_unreadable"


def test_a_cut_nifti_is_refused(tmp_path):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / "a.nii", spine(), HEIGHTS)
    nifti.write_bytes(nifti.read_bytes()[:-5000])
    assert refusal(nifti, plan) == "segmentation_unreadable"


def test_a_nifti_that_claims_terabytes_is_refused_at_once(tmp_path):
    plan = write_study(tmp_path / "dicom")
    nifti = write_nifti(tmp_path / "a.nii", spine(), HEIGHTS)
    content = bytearray(nifti.read_bytes())
    content[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    nifti.write_bytes(content)
    assert refusal(nifti, plan) == "segmentation_unreadable"


def test_no_labels_and_no_numbers_are_refused(tmp_path):
    plan = write_study(tmp_path / "dicom")
    thorax = np.where(spine() > 0, 9, 0).astype(np.uint8)
    assert refusal(write_nifti(tmp_path / "a.nii", thorax, HEIGHTS), plan) == "segmentation_empty"
    half = write_nifti(tmp_path / "b.nii", spine() / 2, HEIGHTS, dtype=np.float32)
    assert refusal(half, plan) == "segmentation_labels"


def test_a_refused_segmentation_keeps_its_study(tmp_path):
    write_study(tmp_path / "train_images" / STUDY)
    write_series(tmp_path / "train_images" / "1.2.3", 3, study="1.2.3")
    write_nifti(tmp_path / "segmentations" / f"{STUDY}.nii", np.flip(spine(), 2), HEIGHTS)
    findings = []
    found = {study.id: study for study in studies(tmp_path, report=findings.append)}
    assert set(found) == {STUDY, "1.2.3"} and found[STUDY].slice_box is None and found[STUDY].vertebra_ratio is None
    assert [(f.id, f.reason, f.refuses_study) for f in findings] == [(STUDY, "segmentation_mirrored", False)]


def test_segmentations_are_found_by_themselves_or_where_told(tmp_path):
    write_study(tmp_path / "data" / "train_images" / STUDY)
    here = write_nifti(tmp_path / "data" / "segmentations" / f"{STUDY}.nii", spine(), HEIGHTS)
    there = write_nifti(tmp_path / "other" / f"{STUDY}.nii.gz", spine(), HEIGHTS)
    assert find_segmentation(segmentation_folder(tmp_path / "data", None), STUDY) == here
    assert find_segmentation(segmentation_folder(tmp_path / "data", tmp_path / "other"), STUDY) == there
    assert find_segmentation(segmentation_folder(tmp_path, None), STUDY) is None
    (study,) = studies(tmp_path / "data")
    assert np.array_equal(study.slice_box, expected_boxes(spine()))


def test_one_slice_can_be_segmented(tmp_path):
    hu = bony(spine())
    write(tmp_path / "dicom" / "1.dcm", dataset(hu[7], z=HEIGHTS[7]))
    plan = plan_studies(tmp_path / "dicom")[0][0]
    assert refusal(write_nifti(tmp_path / "a.nii", spine(), HEIGHTS), plan) == "segmentation_geometry"
    study, findings = open_study(plan, write_nifti(tmp_path / "b.nii", spine()[7:9] * [[[1]], [[0]]], HEIGHTS[7:9]))
    assert findings == [] and np.array_equal(study.slice_box, expected_boxes(spine()[7:8]))


def tall_study(folder, labels, step=2.5):
    """A plan of as many slices as `labels`, with bone where they are, and the slices' heights."""
    heights = TOP - step * np.arange(len(labels))
    for k, hu in enumerate(bony(labels)):
        write_slice(folder / f"{k + 1}.dcm", hu, z=heights[k], number=k + 1)
    return plan_studies(folder)[0][0], heights


@pytest.mark.parametrize(
    ("level", "slices", "stray", "kept"),
    [
        (1, 10, False, True),
        (1, 10, True, True),
        (1, 16, False, False),
        (1, 48, False, False),
        (2, 22, False, True),
        (3, 10, True, True),
        (3, 28, False, False),
    ],
)
def test_one_level_is_a_vertebra_and_not_the_neck(tmp_path, level, slices, stray, kept):
    labels = np.zeros((50, ROWS, COLUMNS), np.uint8)
    labels[1 : 1 + slices, 6:16, 4:17] = level
    labels[49, 8, 9] = level if stray else 0
    plan, heights = tall_study(tmp_path / "dicom", labels)
    nifti = write_nifti(tmp_path / "a.nii", labels, heights)
    if kept:
        assert read(nifti, plan)[2] == []
    else:
        assert refusal(nifti, plan) == "segmentation_one_level"


def test_few_levels_over_a_long_way_are_kept(tmp_path):
    labels = np.zeros((50, ROWS, COLUMNS), np.uint8)
    for level in (6, 7, 8, 9):
        labels[12 * (level - 6) + 1 : 12 * (level - 5), 6 : 10 + level % 4, level : level + 9] = level
    plan, heights = tall_study(tmp_path / "dicom", labels)
    assert read(write_nifti(tmp_path / "a.nii", labels, heights), plan)[2] == []


def with_forms(nifti, sform=None, qform=None):
    """The file with affines in place of its own, or that much (3,) mm to the patient's left, back and head; None takes
    one out."""
    image = nibabel.load(nifti)
    made = nibabel.Nifti1Image(np.array(image.dataobj), image.affine)  # a copy: the file is written anew
    for put, move in ((made.set_sform, sform), (made.set_qform, qform)):
        if move is None:
            put(None, 0)
        else:
            affine = image.affine.copy()
            affine[:3, 3] += np.array(move) * (-1, -1, 1)
            put(affine, 1)
    nibabel.save(made, nifti)
    return nifti


@pytest.mark.parametrize(
    ("sform", "qform", "apart"),
    [
        ((0, 0, 0), (0, 5, 0), "5.0"),
        ((0, 5, 0), (0, 0, 0), "5.0"),
        ((0, 0, 0), (0, 0, 300), "300.0"),
        ((0, 0, 300), (0, 0, 0), "300.0"),
        ((3, 0, 4), (0, 0, 0), "5.0"),
        ((0, 0, 0), (0, 0.3, 0), "0.3"),
    ],
)
def test_of_two_affines_that_disagree_the_one_that_fits_the_bone_is_taken_and_flagged(tmp_path, sform, qform, apart):
    plan = write_study(tmp_path / "dicom")
    nifti = with_forms(write_nifti(tmp_path / "a.nii", spine(), HEIGHTS), sform, qform)
    boxes, _, (finding,) = read(nifti, plan)
    assert (finding.reason, finding.severity) == ("segmentation_two_affines", "flagged")
    assert f"up to {apart} mm apart" in finding.message
    assert f"; {'sform' if sform == (0, 0, 0) else 'qform'} was used" in finding.message
    assert np.array_equal(boxes, expected_boxes(spine()))


@pytest.mark.parametrize(("sform", "qform"), [((0, 0, 0), (0.2, 0, 0)), ((0, 0, 0), None), (None, (0, 0, 0))])
def test_affines_that_agree_or_stand_alone_say_nothing(tmp_path, sform, qform):
    plan = write_study(tmp_path / "dicom")
    nifti = with_forms(write_nifti(tmp_path / "a.nii", spine(), HEIGHTS), sform, qform)
    boxes, _, findings = read(nifti, plan)
    assert findings == [] and np.array_equal(boxes, expected_boxes(spine()))


def test_two_affines_of_which_neither_fits_leave_the_fixed_flips(tmp_path):
    plan = write_study(tmp_path / "dicom")
    raw = np.ascontiguousarray(spine()[::-1].transpose(2, 1, 0)[:, ::-1])
    nibabel.save(nibabel.Nifti1Image(raw, np.eye(4)), tmp_path / "a.nii")
    boxes, _, findings = read(with_forms(tmp_path / "a.nii", (0, 0, 0), (0, 0, 9)), plan)
    assert {finding.reason for finding in findings} == {"segmentation_two_affines", "segmentation_by_fixed_flips"}
    assert np.array_equal(boxes, expected_boxes(spine()))
