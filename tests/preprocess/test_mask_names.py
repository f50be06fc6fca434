"""Which file is a study's mask, and which files are nobody's."""

import os
import tempfile
from pathlib import Path

import pytest
from dicom_files import write_slice

from cache_schema.errors import UsageError
from preprocess import segmentation_folder
from preprocess.masks.names import find_segmentation, unused_masks

STUDY, OTHER = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "masks").mkdir()
    return tmp_path / "masks"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def names(folder, *studies):
    return [str(path.relative_to(folder)) for path in unused_masks(folder, studies)]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII", ".NII.GZ", ".Nii.gz", " .nii", "  .NII.GZ"])
def test_a_suffix_in_any_case_and_blanks_after_the_uid_are_found(folder, suffix):
    touch(folder, f"{STUDY}{suffix}", f"{STUDY}1.nii", f"{OTHER}.nrrd")
    assert find_segmentation(folder, STUDY) == folder / f"{STUDY}{suffix}"
    assert find_segmentation(folder, f"{STUDY} ") == folder / f"{STUDY}{suffix}"
    assert find_segmentation(folder, OTHER) is None and find_segmentation(None, STUDY) is None


def test_a_mask_that_comes_later_is_found_as_well(folder):
    assert find_segmentation(folder, STUDY) is None
    touch(folder, f"{STUDY}.NII")
    os.utime(folder, ns=(1, 1))
    assert find_segmentation(folder, STUDY) == folder / f"{STUDY}.NII"


def test_of_two_files_the_plain_one_is_taken_and_the_other_told(folder):
    touch(folder, f"{STUDY}.nii.gz", f"{STUDY}.nii")
    assert find_segmentation(folder, STUDY) == folder / f"{STUDY}.nii"
    assert names(folder, STUDY) == [f"{STUDY}.nii.gz"]
    touch(folder, f"{OTHER}.NII", f"{OTHER}.nii.gz")
    assert find_segmentation(folder, OTHER) == folder / f"{OTHER}.nii.gz"
    assert names(folder, STUDY, OTHER) == [f"{STUDY}.nii.gz", f"{OTHER}.NII"]


def test_every_file_that_was_meant_to_be_a_mask_and_is_not_taken_is_told(folder):
    touch(folder, f"{STUDY}.nii")
    unused = [
        f"{OTHER}.nii",
        f"{STUDY}.nrrd",
        "a.mha",
        "a.mhd",
        "b.hdr",
        "b.img",
        "c.nii.bz2",
        "d.NII.GZ",
        f"deeper/{STUDY}.nii",
        f"{STUDY}",
        f"{STUDY}.dcm",
        f"{OTHER}_seg.zip",
    ]
    touch(folder, *unused)
    touch(folder, ".DS_Store", f"._{STUDY}.nii", ".hidden/x.nii", "README", "LICENSE.txt", f"{STUDY}.json", "a.png")
    assert names(folder, STUDY) == sorted(unused, key=lambda name: folder / name)


def test_images_that_lie_among_the_masks_are_no_masks(folder):
    touch(folder, f"{STUDY}.nii")
    write_slice(folder / f"{STUDY}.5.77")
    write_slice(folder / f"{STUDY}.5.78.dcm")
    write_slice(folder / "train_images" / STUDY / "1.dcm")
    assert names(folder, STUDY) == []


def test_an_id_that_is_no_uid_is_told_as_well(folder):
    touch(folder, "patient7.nii", "patient8.seg", "patient9.nii")
    assert names(folder, "patient7", "patient8") == ["patient8.seg", "patient9.nii"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody who may not list a folder")
def test_a_folder_that_cannot_be_listed_is_one_line():
    with tempfile.TemporaryDirectory() as made:
        masks = Path(made, "segmentations")
        masks.mkdir(mode=0o700)
        os.chmod(made, 0o755)
        os.seteuid(65534)
        try:
            for given in (None, masks):
                with pytest.raises(UsageError, match=r"cannot be listed \(Permission denied\)"):
                    segmentation_folder(made, given)
            for ask in (lambda: find_segmentation(masks, STUDY), lambda: unused_masks(masks, [STUDY])):
                with pytest.raises(UsageError, match="cannot be listed"):
                    ask()
        finally:
            os.seteuid(0)


def test_a_folder_that_is_none_is_one_line_and_none_beside_the_source_is_fine(tmp_path):
    touch(tmp_path, "file")
    for given in (tmp_path / "no", tmp_path / "file"):
        with pytest.raises(UsageError, match="no such folder"):
            segmentation_folder(tmp_path, given)
    assert segmentation_folder(tmp_path, None) is None and segmentation_folder(tmp_path / "file", None) is None
