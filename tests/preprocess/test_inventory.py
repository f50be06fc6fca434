"""The header pass: what is a DICOM file, what is wrong with one, and that nothing it meets is an exception."""

import os
import pickle
import warnings

import numpy as np
import pytest
from dicom_files import COLUMNS, ROWS, dataset, picture, write, write_series, write_slice
from pydicom import uid
from pydicom.dataset import Dataset

from cache_schema.errors import UsageError
from preprocess.findings import REASONS, STUDY_KEPT
from preprocess.headers.inventory import find_files, scan
from preprocess.natural_order import natural_key
from preprocess.series.planning import plan_studies


def scanned(path):
    found = scan(path)
    return found.headers, found.unread


def reasons(path):
    headers, findings = scanned(path)
    return {reason for header in headers for reason, _ in header.problems} | {finding.reason for finding in findings}


def test_a_good_file_has_every_value_and_no_problem(tmp_path):
    path = write_slice(tmp_path / "a.dcm", z=12.5, number=7, kernel="B30s")
    (header,), findings = scanned(tmp_path)
    assert findings == [] and header.problems == ()
    assert (header.rows, header.columns, header.frames) == (ROWS, COLUMNS, 1)
    assert header.position == (-8.0, -6.0, 12.5) and header.orientation == (1, 0, 0, 0, 1, 0)
    assert (header.instance_number, header.kernel, header.thickness) == (7, "B30s", 1.0)
    assert (header.slope, header.intercept) == (1.0, 0.0)
    content = path.read_bytes()
    assert content[header.pixel_offset :][: header.pixel_length] == picture().tobytes()
    assert (header.size, header.mtime_ns) == (len(content), path.stat().st_mtime_ns)
    assert pickle.loads(pickle.dumps(header)) == header


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.JPEGLosslessSV1])
def test_every_encoding_gives_the_same_values(tmp_path, syntax):
    write_slice(tmp_path / "plain.dcm")
    write_slice(tmp_path / "same.dcm", syntax=syntax)
    plain, same = scanned(tmp_path)[0]
    assert same.problems == ()
    for field in ("rows", "columns", "bits_stored", "position", "orientation", "pixel_spacing", "slope", "intercept"):
        assert getattr(plain, field) == getattr(same, field)


def test_files_are_found_without_suffix_and_strangers_are_counted(tmp_path):
    write_slice(tmp_path / "IM0001")
    write_slice(tmp_path / ".hidden" / ".1.dcm", number=3)
    write_slice(tmp_path / "deep" / "er" / "x.DCM", number=2)
    for name in ("LICENSE", "train.csv", "readme.txt", ".note"):
        (tmp_path / name).write_text("no image")
    directory = Dataset()
    directory.file_meta = dataset(picture()).file_meta
    directory.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    directory.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    write(tmp_path / "DICOMDIR", directory)
    (tmp_path / "._1.dcm").write_bytes(b"\0\x05\x16\x07")
    found = scan(tmp_path)
    assert len(found.headers) == 3 and found.unread == []
    assert found.others == {"text files": 4, "DICOMDIR files": 1, "AppleDouble files": 1}
    (row,) = found.about_others()
    assert (row.severity, row.reason) == ("flagged", "other_files")
    assert row.message == "skipped: 1 AppleDouble files, 1 DICOMDIR files, 4 text files"


@pytest.mark.parametrize("content", [b"", b"text, not DICOM", b"\x89PNG\r\n\x1a\n" + b"\0" * 300])
def test_a_dcm_file_that_is_no_dicom_is_a_finding(tmp_path, content):
    write_slice(tmp_path / "1.dcm")
    (tmp_path / "2.dcm").write_bytes(content)
    headers, (finding,) = scanned(tmp_path)
    assert len(headers) == 1
    assert (finding.reason, finding.severity, finding.file) == ("not_dicom", "refused", "2")


def test_in_the_rsna_layout_only_train_images_is_read(tmp_path):
    write_slice(tmp_path / "train_images" / "1.2" / "1.dcm")
    write_slice(tmp_path / "test_images" / "1.3" / "1.dcm")
    assert [path.parent.name for path in find_files(tmp_path)[0]] == ["1.2"]


def test_a_missing_source_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        scanned(tmp_path / "nowhere")


def test_folders_that_link_to_each_other_end(tmp_path):
    write_slice(tmp_path / "a" / "1.dcm")
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    assert len(find_files(tmp_path)[0]) == 1


def test_numbers_in_names_count_as_numbers():
    assert sorted(["10.dcm", "9.dcm", "a2b10", "a2b9", "01.dcm", "1.dcm"], key=natural_key) == [
        *("01.dcm", "1.dcm", "9.dcm", "10.dcm"),
        *("a2b9", "a2b10"),
    ]


NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
PLACED = ("PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@pytest.mark.parametrize("keyword", [*NEEDED, *PLACED])
def test_a_missing_field_is_named(tmp_path, keyword):
    write_slice(tmp_path / "1.dcm", remove=(keyword,))
    (header,), _ = scanned(tmp_path)
    assert [reason for reason, _ in header.problems] == ["missing_field"]
    assert keyword in header.problems[0][1]


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_an_empty_field_is_a_missing_one(tmp_path, keyword):
    write_slice(tmp_path / "1.dcm", **{keyword: None})
    assert reasons(tmp_path) == {"missing_field"}


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_without_rescaling_there_are_no_hu(tmp_path, keyword):
    write_slice(tmp_path / "1.dcm", remove=(keyword,))
    assert reasons(tmp_path) == {"missing_rescale"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"RescaleSlope": "0"}, "invalid_field"),
        ({"PixelSpacing": [0, 0.5]}, "invalid_field"),
        ({"PixelSpacing": [-0.5, 0.5]}, "invalid_field"),
        ({"ImagePositionPatient": ["1e300", "0", "0"]}, "invalid_field"),
        ({"PixelRepresentation": 2}, "invalid_field"),
        ({"BitsStored": 0, "HighBit": 0}, "invalid_field"),
        ({"BitsStored": 12, "HighBit": 15}, "high_bit"),
        ({"BitsAllocated": 32}, "unsupported_pixels"),
        ({"SamplesPerPixel": 3}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "RGB"}, "unsupported_pixels"),
        ({"Rows": 0}, "invalid_field"),
        ({"Rows": 65535, "Columns": 65535}, "pixels_too_many"),
        ({"Rows": ROWS + 1}, "pixel_length"),
        ({"Rows": ROWS // 2}, "pixel_length"),
        ({"NumberOfFrames": "0"}, "invalid_field"),
        ({"NumberOfFrames": "2"}, "pixel_length"),
    ],
)
def test_values_that_cannot_be_are_problems(tmp_path, fields, reason):
    write_slice(tmp_path / "1.dcm", **fields)
    assert reason in reasons(tmp_path)


@pytest.mark.parametrize("text", [b"abc ", b"nan ", b"inf ", b"1\\2 "])
def test_a_rescale_that_is_no_number_is_a_problem_and_is_not_printed(tmp_path, text):
    path = write_slice(tmp_path / "1.dcm", RescaleIntercept="-999")
    content = path.read_bytes()
    assert content.count(b"-999") == 1
    path.write_bytes(content.replace(b"-999", text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (header,), _ = scanned(tmp_path)
    assert [reason for reason, _ in header.problems] == ["invalid_field"]
    assert text.decode().strip() not in header.problems[0][1]


def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path):
    content = write_slice(tmp_path / "whole" / "1.dcm").read_bytes()
    (tmp_path / "cut").mkdir()
    for length in range(0, len(content), 37):
        path = tmp_path / "cut" / "1.dcm"
        path.write_bytes(content[:length])
        plans, findings = plan_studies(tmp_path / "cut")
        assert plans == [] and findings, length


def test_compressed_bytes_labelled_uncompressed_are_refused(tmp_path):
    ds = dataset(picture(), syntax=uid.JPEGLosslessSV1)
    frame = ds.PixelData
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.PixelData, ds["PixelData"].VR = frame, "OW"
    write(tmp_path / "1.dcm", ds)
    assert reasons(tmp_path) == {"pixel_length"}


def test_without_pixel_data_or_a_transfer_syntax_a_file_is_refused(tmp_path):
    write_slice(tmp_path / "1.dcm", remove=("PixelData",))
    assert reasons(tmp_path) == {"no_pixel_data"}
    path = write_slice(tmp_path / "1.dcm")
    element = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    content = path.read_bytes()
    assert content.count(element) == 1
    length = int.from_bytes(content[140:144], "little") - len(element)
    content = content[:140] + length.to_bytes(4, "little") + content[144:]
    path.write_bytes(content.replace(element, b""))
    assert reasons(tmp_path) & {"missing_field", "unreadable_header"}


def test_pipes_and_links_that_lead_nowhere_stop_nothing(tmp_path):
    write_slice(tmp_path / "1.dcm")
    os.mkfifo(tmp_path / "2.dcm")
    (tmp_path / "3.dcm").symlink_to("3.dcm")
    (tmp_path / "4").symlink_to("2.dcm")
    headers, (finding,) = scanned(tmp_path)
    assert len(headers) == 1 and finding.reason == "unreadable_file"


def test_one_header_per_frame_of_an_enhanced_file(tmp_path):
    ds = dataset(np.stack([picture(z) for z in range(3)]), NumberOfFrames="3", remove=("ImagePositionPatient",))
    groups = []
    for z in range(3):
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [-8, -6, 50 - 2 * z]
        group.PlanePositionSequence = [plane]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    write(tmp_path / "1.dcm", ds)
    headers, findings = scanned(tmp_path)
    assert findings == [] and [h.problems for h in headers] == [(), (), ()]
    assert [(h.frame, h.position[2]) for h in headers] == [(0, 50), (1, 48), (2, 46)]


def test_frames_without_places_are_refused(tmp_path):
    write(tmp_path / "1.dcm", dataset(np.stack([picture(z) for z in range(3)]), NumberOfFrames="3"))
    assert reasons(tmp_path) == {"missing_field"}


def test_reports_beside_the_images_are_listed_and_harm_nothing(tmp_path):
    write_series(tmp_path, 3)
    ds = dataset(picture(), Modality="SR", number=99, remove=("Rows", "Columns", "PixelData"))
    write(tmp_path / "99.dcm", ds)
    plans, findings = plan_studies(tmp_path)
    assert len(plans) == 1 and [finding.reason for finding in findings] == ["not_ct"]


def test_every_reason_has_a_meaning_and_studies_survive_only_file_reasons():
    assert all(REASONS.values()) and set(REASONS) >= STUDY_KEPT
    assert not STUDY_KEPT & {"missing_field", "mixed_size", "truncated_frame"}
