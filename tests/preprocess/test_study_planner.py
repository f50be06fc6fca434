"""Judging studies: which files, in which order and orientation, and every reason to flag, mend or refuse."""

import pickle

import imagecodecs
import numpy as np
import pytest
from dicom_files import (
    COLUMNS,
    FIRST,
    ROWS,
    SPACING,
    STUDY,
    dataset,
    encode,
    expected_grey,
    grey,
    picture,
    plan_one,
    volume,
    write,
    write_series,
    write_slice,
)
from pydicom import uid
from pydicom.encaps import encapsulate

from preprocess import open_study
from preprocess.findings import REASONS
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def test_a_plain_study_has_no_findings(tmp_path):
    plan, found = plan_one(write_series(tmp_path, 5))
    assert found == {} and plan.flags == () and not plan.turn
    assert (plan.id, plan.study_uid, plan.series_uid) == (STUDY, STUDY, f"{STUDY}.1")
    assert plan.spacing == (2.0, 0.5, 0.5) and plan.slice_spacing == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert plan.position == (*FIRST, 100.0) and plan.orientation == (1, 0, 0, 0, 1, 0)
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize("step", [-2.0, 2.0])
def test_slices_run_from_head_to_feet_whatever_the_file_order(tmp_path, step):
    plan, found = plan_one(write_series(tmp_path, 5, step=step))
    assert found == {}
    assert (np.diff(plan.z) < 0).all() and plan.z.dtype == np.float64
    assert plan.slice_number.tolist() == ([1, 2, 3, 4, 5] if step < 0 else [5, 4, 3, 2, 1])
    assert np.array_equal(grey(plan), expected_grey(volume(5)))


def test_shuffled_files_are_ordered_by_position_and_flagged(tmp_path):
    for name, k in zip([3, 1, 5, 2, 4], range(5), strict=True):
        write_slice(tmp_path / f"{name}.dcm", picture(k), z=100 - 2 * k, number=k + 1)
    plan, found = plan_one(tmp_path)
    assert found == {"file_order": "flagged"} and plan.flags == ("file_order",)
    assert np.array_equal(grey(plan), expected_grey(volume(5)))


def test_names_that_do_not_count_say_nothing_about_order(tmp_path):
    for name, k in zip("dbeac", range(5), strict=True):
        write_slice(tmp_path / name, picture(k), z=100 - 2 * k, number=k + 1)
    assert plan_one(tmp_path)[1] == {}


def test_the_slice_number_is_the_file_name_in_the_rsna_layout_and_instance_number_elsewhere(tmp_path):
    for k in range(4):
        for folder in (tmp_path / "rsna" / "train_images" / STUDY, tmp_path / "tree"):
            write_slice(folder / f"{11 + k}.dcm", picture(k), z=100 - 2 * k, number=501 + k)
    assert plan_one(tmp_path / "rsna")[0].slice_number.tolist() == [11, 12, 13, 14]
    assert plan_one(tmp_path / "tree")[0].slice_number.tolist() == [501, 502, 503, 504]


@pytest.mark.parametrize("changes", [{"remove": ("InstanceNumber",)}, {"InstanceNumber": "4"}])
def test_without_slice_numbers_files_are_counted(tmp_path, changes):
    plan, found = plan_one(write_series(tmp_path, 3, **changes))
    assert found == {"no_slice_number": "flagged"} and plan.slice_number.tolist() == [1, 2, 3]


TURNS = {
    "as it is": lambda p: p,
    "upside down": lambda p: p[::-1],
    "left to right": lambda p: p[:, ::-1],
    "half a turn": lambda p: p[::-1, ::-1],
    "quarter turn": np.rot90,
    "three quarters": lambda p: np.rot90(p, 3),
    "transposed": np.transpose,
    "transposed the other way": lambda p: np.rot90(p, 2).T,
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("down, across", [(0.5, 0.5), (0.4, 0.6)])
def test_every_turn_and_flip_gives_the_same_picture_at_the_same_place(tmp_path, turn, down, across):
    row_index, column_index = (turn(index) for index in np.indices((ROWS, COLUMNS)))

    def place(i, j):
        return np.array([FIRST[0] + across * column_index[i, j], FIRST[1] + down * row_index[i, j]])

    right, below = place(0, 1) - place(0, 0), place(1, 0) - place(0, 0)
    lengths = [np.abs(below).max(), np.abs(right).max()]
    orientation = [*(right / lengths[1]), 0, *(below / lengths[0]), 0]
    for k in range(3):
        write_slice(
            tmp_path / f"{k + 1}.dcm",
            np.ascontiguousarray(turn(picture(k))),
            number=k + 1,
            ImagePositionPatient=[f"{value:.6f}" for value in (*place(0, 0), 40 - k)],
            ImageOrientationPatient=[f"{value:.6f}" for value in orientation],
            PixelSpacing=[f"{value:.6f}" for value in lengths],
        )
    plan, found = plan_one(tmp_path)
    assert ("turned" in found) == (turn is not TURNS["as it is"]) == bool(plan.turn)
    assert ("non_square" in found) == (down != across)
    assert (plan.rows, plan.columns) == (ROWS, COLUMNS)
    assert np.allclose(plan.orientation, [1, 0, 0, 0, 1, 0])
    assert np.allclose(plan.position, (*FIRST, 40)) and np.allclose(plan.spacing, (1, down, across))
    assert np.array_equal(grey(plan), expected_grey(volume(3)))
    box = (3, 2, 20, 15)
    assert np.array_equal(DicomPixels(plan).read(1, 3, box), expected_grey(volume(3))[1:3, 2:15, 3:20])


@pytest.mark.parametrize("degrees", [0.2, 18.5, 29.0, 31.0, 90.0])
def test_tilt_is_flagged_and_beyond_30_degrees_refused(tmp_path, degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    orientation = [1, 0, 0, 0, f"{cos:.8f}", f"{-sin:.8f}"]
    for k in range(4):
        place = [0, f"{2 * k * sin:.8f}", f"{2 * k * cos:.8f}"]
        changes = {"ImageOrientationPatient": orientation, "ImagePositionPatient": place}
        write_slice(tmp_path / f"{k + 1}.dcm", picture(3 - k), number=k + 1, **changes)
    plan, found = plan_one(tmp_path)
    if degrees > 30:
        assert plan is None and found == {"not_axial": "refused"}
    else:
        assert found == ({"gantry_tilt": "flagged"} if degrees > 1 else {})
        assert np.allclose(plan.spacing, (2, *SPACING), atol=1e-5)
        assert np.array_equal(grey(plan), expected_grey(volume(4)))


def test_a_single_slice_leaves_the_spacing_open(tmp_path):
    plan, found = plan_one(write_series(tmp_path, 1))
    assert plan.spacing is None and plan.slice_spacing is None and found == {"single_slice": "flagged"}


def test_a_missing_slice_is_a_gap(tmp_path):
    write_series(tmp_path, 9)
    (tmp_path / "5.dcm").unlink()
    plan, found = plan_one(tmp_path)
    assert found == {"gaps": "flagged", "uneven_spacing": "flagged"} and len(plan.slices) == 8


def test_uneven_spacing_without_missing_slices_is_no_gap(tmp_path):
    for k, z in enumerate([100, 97, 94, 89, 84, 79]):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=z, number=k)
    plan, found = plan_one(tmp_path)
    assert found == {"uneven_spacing": "flagged"} and plan.slice_spacing == {"min": 3, "median": 5, "max": 5}


def test_rounded_positions_are_even(tmp_path):
    for k in range(9):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=round(100 - 0.625 * k, 2), number=k)
    assert plan_one(tmp_path)[1] == {}


def test_copies_are_left_out_however_many_and_are_one_row(tmp_path):
    write_series(tmp_path, 4)
    for number in (2, 3, 4):
        (tmp_path / f"copy of {number}.dcm").write_bytes((tmp_path / f"{number}.dcm").read_bytes())
    plans, (finding,) = plan_studies(tmp_path)
    assert np.array_equal(grey(plans[0]), expected_grey(volume(4))) and plans[0].flags == ()
    assert (finding.severity, finding.reason) == ("repaired", "repeated_file")
    assert finding.message.startswith("3 exact copies of other images") and finding.message.endswith("files 5, 6, 7")


def test_a_second_image_at_a_place_that_differs_is_left_out_and_reported(tmp_path):
    write_series(tmp_path, 11)
    write_slice(tmp_path / "99.dcm", picture(77), z=98.0, number=99)
    plans, findings = plan_studies(tmp_path)
    study, about = open_study(plans[0])
    assert findings == [] and np.array_equal(study.read(0, 11), expected_grey(volume(11)))
    (finding,) = about
    assert (finding.severity, finding.reason, finding.file) == ("repaired", "repeated_position", "12")
    assert "1 of 12 images" in finding.message and "file 12" in finding.message


def test_more_than_one_such_image_in_ten_refuses_the_study(tmp_path):
    write_series(tmp_path, 9)
    write_slice(tmp_path / "99.dcm", picture(77), z=98.0, number=99)
    assert plan_one(tmp_path) == (None, {"too_many_repeats": "refused"})


@pytest.mark.parametrize("damage", ["cut", "not decodable", "lossy"])
def test_of_two_images_at_a_place_the_sound_one_stays_though_it_comes_later(tmp_path, damage):
    write_series(tmp_path, 11, syntax=uid.JPEGLosslessSV1)
    first = tmp_path / "0.dcm"
    if damage == "cut":  # an uncompressed file that ends early
        path = write_slice(first, picture(1), z=98.0, number=2)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        ds = dataset(picture(1), z=98.0, number=2, syntax=uid.JPEGLosslessSV1)
        frame = encode(picture(1), uid.JPEGLosslessSV1, 16)[:100]
        if damage == "lossy":
            ds = dataset(picture(1), z=98.0, number=2, syntax=uid.JPEGLosslessSV1, signed=False)
            ds.file_meta.TransferSyntaxUID = uid.JPEGLSNearLossless
            frame = imagecodecs.jpegls_encode((picture(1) + 1024).astype(np.uint16), level=2)
        ds.PixelData = encapsulate([frame])
        write(first, ds)
    plans, findings = plan_studies(tmp_path)
    study, about = open_study(plans[0])
    assert np.array_equal(study.read(0, 11), expected_grey(volume(11)))
    assert study.slice_number.tolist() == list(range(1, 12))
    said = [(f.reason, f.file) for f in [*findings, *about] if f.reason != "file_order"]
    assert said == [("repeated_position", "1")]


@pytest.mark.parametrize("copies", [True, False])
def test_a_study_never_shrinks_to_one_slice(tmp_path, copies):
    for number in range(1, 13):
        write_slice(tmp_path / f"{number}.dcm", picture(0 if copies else number), z=5.0, number=number)
    assert plan_one(tmp_path) == (
        None,
        {"too_many_repeats": "refused"} | ({"repeated_file": "repaired"} if copies else {}),
    )


def test_a_repeated_uid_at_another_position_is_no_copy(tmp_path):
    plan, found = plan_one(write_series(tmp_path, 4, SOPInstanceUID="1.2.3"))
    assert found == {"repeated_sop_uid": "flagged"} and len(plan.slices) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImageOrientationPatient": [0.99875, 0.05, 0, -0.05, 0.99875, 0]}, "mixed_orientation"),
        ({"hu": picture(rows=ROWS + 2)}, "mixed_size"),
        ({"PixelSpacing": [0.4, 0.4]}, "mixed_pixel_spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "invalid_orientation"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]}, "invalid_orientation"),
        ({"remove": ("ImagePositionPatient",)}, "missing_field"),
        ({"remove": ("RescaleSlope",)}, "missing_rescale"),
        ({"BitsStored": 12, "HighBit": 15}, "high_bit"),
    ],
)
def test_one_bad_slice_refuses_its_study_and_only_that(tmp_path, changes, reason):
    write_series(tmp_path / "bad", 4)
    write_slice(tmp_path / "bad" / "3.dcm", **{"hu": picture(2), "z": 96.0, "number": 3} | changes)
    write_series(tmp_path / "good", 4, study="1.2.3")
    plans, findings = plan_studies(tmp_path)
    assert [plan.id for plan in plans] == ["1.2.3"]
    (finding,) = findings
    assert (finding.id, finding.severity, finding.reason) == (STUDY, "refused", reason)
    assert finding.refuses_study and finding.reason in REASONS


def test_a_transfer_syntax_without_decoder_is_refused(tmp_path):
    path = write_slice(tmp_path / "1.dcm")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    assert plan_one(tmp_path) == (None, {"unsupported_syntax": "refused"})


def test_junk_beside_a_study_is_numbered_and_flags_it(tmp_path):
    write_series(tmp_path, 9)
    (tmp_path / "2.dcm").write_text("SECRET^NAME")
    plans, findings = plan_studies(tmp_path)
    assert plans[0].flags == ("gaps", "uneven_spacing", "unread_files") and len(plans[0].slices) == 8
    (junk,) = [f for f in findings if f.severity == "refused"]
    assert (junk.id, junk.file, junk.reason, junk.refuses_study) == (STUDY, "2", "not_dicom", False)


def test_a_study_of_which_nothing_can_be_read_is_refused_by_its_folder(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        path = tmp_path / "train_images" / "1.2.3" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    plans, findings = plan_studies(tmp_path)
    assert plans == [] and {f.id for f in findings} == {"1.2.3"}
    assert [f.reason for f in findings if f.refuses_study] == ["no_readable_file"]


@pytest.mark.parametrize("uid", ["..", "1..2", "../../etc", "a/b", "1.2 3", ".hidden", "x" * 65])
def test_a_uid_that_is_no_file_name_is_refused_and_not_repeated(tmp_path, uid):
    write_series(tmp_path, 2, StudyInstanceUID=uid)
    plans, findings = plan_studies(tmp_path)
    (finding,) = findings
    assert plans == [] and finding.reason == "invalid_id" and uid not in f"{finding.id}{finding.message}"


def test_studies_whose_uids_are_no_ids_are_told_apart_by_their_first_file_in_the_source(tmp_path):
    for place, (name, count) in enumerate({"a/b": 2, "1.2.3": 2, "1..2": 3, "": 1}.items()):
        write_series(tmp_path / str(place), count, StudyInstanceUID=name)
    plans, findings = plan_studies(tmp_path)
    assert len(plans) == 1
    assert sorted((f.id, f.file, f.reason) for f in findings if f.severity == "refused") == [
        ("", "1", "invalid_id"),
        ("", "5", "invalid_id"),
        ("", "8", "unreadable_header"),
    ]


@pytest.mark.parametrize("uid", ["05fa52f0", "1.02.3"])
def test_a_uid_that_only_dicom_forbids_is_flagged(tmp_path, uid):
    plan, found = plan_one(write_series(tmp_path, 2, StudyInstanceUID=uid))
    assert plan.id == uid and found == {"invalid_uid": "flagged"}
