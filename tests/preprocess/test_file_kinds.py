"""No input vanishes: what is DICOM is read, what is known to be something else is counted, all else has a row."""

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_files import expected_grey, picture, plan_one, volume, write_series, write_slice
from pydicom import uid
from tiny_rsna import IDS, SEGMENTED, write_rsna

from cache_schema import Cache
from preprocess import open_study
from preprocess.cli import run
from preprocess.headers.inventory import scan
from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def zipped(name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "something")
    return content.getvalue()


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("1.dcm"))
    return content.getvalue()


def nifti():
    return nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()


KNOWN = {
    "text": b"Patient CD\r\nuse the viewer\r\n",
    "latin-1 text": "Ber\xe4tung: W\xfcrzburg".encode("latin-1"),
    "utf-16 text": "[autorun]".encode("utf-16"),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(300),
    "PDF": b"%PDF-1.7\n" + bytes(300),
    "parquet": b"PAR1" + bytes(300),
    "sheet": zipped("[Content_Types].xml"),
    "Java program": zipped("META-INF/MANIFEST.MF"),
    "Windows program": b"MZ\x90\0" + bytes(300),
    "Linux program": b"\x7fELF\x02" + bytes(300),
    "database": b"SQLite format 3\0" + bytes(300),
    "thumbnails": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(300),
    "AppleDouble": b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(300),
    "NIfTI": nifti(),
    "packed NIfTI": gzip.compress(nifti()),
}
UNKNOWN = {
    "empty": (b"", "not_dicom"),
    "zeros": (bytes(131), "not_dicom"),
    "noise": (b"\x93\x01\x02\x7f\x00\xfe" * 99, "not_dicom"),
    "gzip": (gzip.compress(bytes(500)), "archive"),
    "zip": (zipped("1.dcm"), "archive"),
    "tar": (tarred(), "archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "archive"),
}


@pytest.mark.parametrize("name", ["file", ".hidden", "x.bin"])
@pytest.mark.parametrize("content", KNOWN.values(), ids=KNOWN)
def test_files_known_by_their_first_bytes_are_passed_over_and_counted(tmp_path, content, name):
    write_slice(tmp_path / "1.dcm")
    (tmp_path / name).write_bytes(content)
    found = scan(tmp_path)
    assert len(found.headers) == 1 and found.unread == [] and found.others.total() == 1


@pytest.mark.parametrize("name", ["file", ".hidden", "1.2.3"])
@pytest.mark.parametrize(("content", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_all_other_files_have_a_row_each(tmp_path, content, reason, name):
    write_slice(tmp_path / "a" / "1.dcm")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_bytes(content)
    found = scan(tmp_path)
    assert [(f.file, f.severity, f.reason) for f in found.unread] == [("2", "refused", reason)] and not found.others


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("name", ["IM{}", "{}.ima", ".{}"])
def test_dicom_without_preamble_is_read(tmp_path, syntax, name):
    write_series(tmp_path, 5, syntax=syntax)
    for k in range(1, 6):
        path = tmp_path / f"{k}.dcm"
        (tmp_path / name.format(k)).write_bytes(path.read_bytes()[132:])
        path.unlink()
    plan, found = plan_one(tmp_path)
    assert found == {} and np.array_equal(open_study(plan)[0].read(0, 5), expected_grey(volume(5)))


@pytest.mark.parametrize("explicit", [True, False])
def test_a_data_set_without_meta_information_is_read(tmp_path, explicit):
    syntax = uid.ExplicitVRLittleEndian if explicit else uid.ImplicitVRLittleEndian
    for k in range(3):
        path = write_slice(tmp_path / f"{k}.dcm", picture(k), z=10.0 - k, number=k + 1, syntax=syntax)
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    plan, found = plan_one(tmp_path)
    assert found == {} and np.array_equal(open_study(plan)[0].read(0, 3), expected_grey(volume(3)))


def test_files_that_were_cut_short_have_a_row_whatever_their_name(tmp_path):
    write_series(tmp_path, 8)
    content = (tmp_path / "8.dcm").read_bytes()
    for length in (0, 1, 100, 131, 132, 200):
        (tmp_path / f"IM{length}").write_bytes(content[:length])
    plans, findings = plan_studies(tmp_path)
    assert len(plans[0].slices) == 8 and "unread_files" in plans[0].flags
    assert sum(f.severity == "refused" for f in findings) == 6


def test_deflated_and_remote_pixels_are_refused_for_the_true_reason(tmp_path):
    write_slice(tmp_path / "a.dcm", syntax=uid.DeflatedExplicitVRLittleEndian)
    remote = write_slice(tmp_path / "b.dcm", study="1.2.3", remove=("PixelData",))
    remote.write_bytes(remote.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.94"[:20]))
    _, findings = plan_studies(tmp_path)
    assert [f.reason for f in findings if f.id != "1.2.3"] == ["unsupported_syntax"]
    assert "deflated" in findings[-1].message + findings[0].message


def test_uncompressed_pixels_of_undefined_length_are_told_as_what_they_are(tmp_path):
    path = write_slice(tmp_path / "1.dcm", syntax=uid.JPEGLosslessSV1)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.1\0\0\0"))
    _, (finding,) = plan_studies(tmp_path)
    assert finding.reason == "pixel_length" and "compressed pixel data under" in finding.message


# What a build makes of it


def build(source, cache, *more):
    return run(["build-cache", str(source), str(cache), "--workers", "1", "--folds", "2", *more])


def report_of(cache):
    return pd.read_csv(cache / "report.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    return write_rsna(tmp_path_factory.mktemp("kinds") / "rsna")


@pytest.fixture
def source(rsna, tmp_path):
    return shutil.copytree(rsna, tmp_path / "rsna")


def test_files_of_no_study_count_as_refused(source, tmp_path, capsys):
    extra = source / "train_images" / "lost and found"
    extra.mkdir()
    (extra / "7.dcm.gz").write_bytes(gzip.compress(b"slice"))
    (extra / "readme").write_text("see above")
    assert build(source, tmp_path / "cache") == 3
    assert "1 refused (1 of them files of no study)" in capsys.readouterr().out
    report = report_of(tmp_path / "cache")
    assert report[["id", "severity", "reason"]].to_numpy().tolist() == [
        ["", "flagged", "other_files"],
        ["", "refused", "archive"],
    ]
    assert build(source, tmp_path / "cache", "--max-refused", "0") == 1
    assert build(source, tmp_path / "cache", "--max-refused", "1") == 3
    assert build(source, tmp_path / "cache", "--paths") == 3
    assert str(extra / "7.dcm.gz") in set(report_of(tmp_path / "cache")["file"])


def test_where_nothing_can_be_used_the_status_is_2_whatever_is_allowed(tmp_path):
    write_series(tmp_path / "source", 3, remove=("StudyInstanceUID",))
    assert build(tmp_path / "source", tmp_path / "cache") == 2
    assert build(tmp_path / "source", tmp_path / "cache", "--max-refused", "0") == 2


def test_a_source_of_other_files_alone_leaves_no_cache(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("no scans yet")
    assert build(tmp_path / "source", tmp_path / "cache") == 2
    assert "holds no DICOM files" in capsys.readouterr().err and not (tmp_path / "cache").exists()


def test_masks_that_no_study_takes_have_a_flagged_row_each(source, tmp_path):
    masks = source / "segmentations"
    shutil.copy(masks / f"{SEGMENTED[0]}.nii", masks / "1.2.826.0.1.3680043.8.498.9999.nii")
    (masks / f"{IDS[3]}.nrrd").write_bytes(b"NRRD0004")
    assert build(source, tmp_path / "cache", "--limit", "1") == 0
    report = report_of(tmp_path / "cache")
    assert report["reason"].tolist() == ["unused_mask", "unused_mask"] and set(report["severity"]) == {"flagged"}
    assert not report["message"].str.contains("9999").any()


def test_labels_of_other_studies_are_counted_and_labels_of_none_end_the_build_before_it_decodes(
    source, tmp_path, capsys
):
    lines = (source / "train.csv").read_text().splitlines()
    (source / "train.csv").write_text("\n".join([*lines[:3], "1.2.3,0,0,0,0,0,0,0,0"]) + "\n")
    assert build(source, tmp_path / "cache") == 0
    (row,) = report_of(tmp_path / "cache").to_dict("records")
    assert (row["severity"], row["reason"]) == ("flagged", "labels_mismatch") and "2 of 4 studies" in row["message"]
    (source / "train.csv").write_text("\n".join([lines[0], "1.2.3,0,0,0,0,0,0,0,0"]) + "\n")
    capsys.readouterr()
    assert build(source, tmp_path / "other") == 2 and not (tmp_path / "other").exists()
    assert "names no study of the source" in capsys.readouterr().err


def test_uids_with_blanks_at_their_end_are_the_same(source, tmp_path):
    table = (source / "train.csv").read_text().replace(",1,1", " ,1,1")
    (source / "train.csv").write_text(table)
    assert build(source, tmp_path / "cache") == 0 and len(report_of(tmp_path / "cache")) == 0
    assert Cache(tmp_path / "cache").labels["patient_overall"].notna().all()


@pytest.fixture
def open_to_all():
    """A folder that another user may enter; pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="cspine-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which root alone may")
def test_a_folder_that_cannot_be_listed_is_a_row_and_not_the_end(open_to_all):
    """Root may list everything, so another user does."""
    write_series(open_to_all / "good", 4)
    write_series(open_to_all / "SECRET", 4, study="1.2.3")
    (open_to_all / "SECRET").chmod(0)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            plans, findings = plan_studies(open_to_all)
            os.write(theirs, f"{len(plans)} {[(f.reason, f.severity, f.message) for f in findings]}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said.startswith("1 [('unlisted_folder', 'refused', 'folder 2 of the source: ")
    assert "Permission denied" in said and "SECRET" not in said
