"""The phantom as a set of files: the same from any number of workers, real DICOM and NIfTI, with the truth beside it."""

import json
from dataclasses import replace
from pathlib import Path

import gdcm
import imagecodecs
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from cache_schema.errors import UsageError
from preprocess.phantom import make_phantom_study, write_phantom
from preprocess.phantom.dicom import ORIENTATIONS, SYNTAX_UIDS, plan_files, write_dicom
from preprocess.phantom.labels import LEVELS, PREVALENCE, draw_labels
from preprocess.phantom.nifti import write_segmentation
from preprocess.phantom.truth import study_box

SLICES = 8


@pytest.fixture(scope="module")
def study():
    return make_phantom_study(seed=5, index=1, slices=24, fractured_levels=[6])


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(out, studies=4, slices=SLICES, segmented=2, seed=3, workers=2, progress=False)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_study_is_the_same_whatever_the_number_of_studies_and_workers(small_set, tmp_path):
    write_phantom(tmp_path / "alone", studies=2, slices=SLICES, segmented=2, seed=3, workers=1, progress=False)
    alone, together = files_of(tmp_path / "alone"), files_of(small_set)
    shared = [name for name in alone if name.startswith(("train_images", "truth"))]
    assert len(shared) == 2 * (SLICES + 2)
    assert all(alone[name] == together[name] for name in shared)


def test_another_seed_gives_another_person_and_other_noise():
    one, other = make_phantom_study(1, 0, 8), make_phantom_study(2, 0, 8)
    assert one.scan.field_of_view != other.scan.field_of_view
    assert (one.hu != other.hu).mean() > 0.2


def test_the_set_has_the_competitions_layout(small_set):
    table = pd.read_csv(small_set / "train.csv")
    assert list(table.columns) == ["StudyInstanceUID", "patient_overall", *LEVELS]
    assert (table["patient_overall"] == table[list(LEVELS)].any(axis=1)).all()
    folders = {p.name for p in (small_set / "train_images").iterdir()}
    assert folders == set(table["StudyInstanceUID"]) and len(folders) == 4
    for folder in folders:
        names = {p.name for p in (small_set / "train_images" / folder).iterdir()}
        assert names == {f"{n}.dcm" for n in range(1, SLICES + 1)}
    masks = list((small_set / "segmentations").iterdir())
    assert len(masks) == 2 and {p.name.removesuffix(".nii") for p in masks} <= folders


def test_the_truth_tells_the_box_the_levels_and_the_breaks(small_set):
    table = pd.read_csv(small_set / "train.csv").set_index("StudyInstanceUID")
    for path in (small_set / "truth").glob("*.json"):
        truth = json.loads(path.read_text())
        labels = np.load(path.with_suffix(".npz"))["labels"]
        assert labels.shape == (SLICES, 512, 512) and truth["study_box"] == study_box(labels)
        for n, name in enumerate(LEVELS, start=1):
            told = truth["levels"][name]
            assert told["fractured"] == bool(table.loc[truth["study_uid"], name]) == ("fracture" in told)
            if told["z_from"] is not None:
                assert (labels[told["z_from"]] == n).any() and (labels[told["z_to"] - 1] == n).any()


def test_both_directions_and_every_syntax_are_among_the_first_four_studies():
    for seed in range(5):
        plans = [plan_files(seed, i) for i in range(8)]
        assert {p.head_first for p in plans[:4]} == {True, False} and {p.bits for p in plans[:4]} == {12, 16}
        assert {p.syntax for p in plans[:4]} == set(SYNTAX_UIDS)
        assert sum(p.syntax == "j2k" for p in plans) == 1
        assert {p.orientation for p in plans} == set(ORIENTATIONS)


def test_study_uids_are_distinct_and_of_the_competitions_form():
    uids = {plan_files(0, i).study_uid for i in range(3000)}
    assert len(uids) == 3000 and all(uid.startswith("1.2.826.0.1.3680043.") and len(uid) <= 64 for uid in uids)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", sorted(SYNTAX_UIDS))
def test_every_syntax_is_read_back_exactly_by_every_decoder(study, tmp_path, syntax, bits):
    plan = replace(plan_files(5, 1), syntax=syntax, bits=bits)
    hu = study.hu[10:12]
    for path, expected in zip(
        write_dicom(tmp_path, hu, study.scan, plan), hu[:: 1 if plan.head_first else -1], strict=True
    ):
        ds = pydicom.dcmread(path)
        assert ds.file_meta.TransferSyntaxUID == SYNTAX_UIDS[syntax]
        readings = {"gdcm": read_with_gdcm(path, ds.PixelRepresentation)}
        if syntax == "explicit":
            readings["pydicom"] = ds.pixel_array
        else:
            decoder = get_decoder(SYNTAX_UIDS[syntax])
            for name in decoder.available_plugins:
                readings[name] = decoder.as_array(ds, raw=True, decoding_plugin=name)[0]
        if syntax == "sv1":
            frame = next(generate_frames(ds.PixelData, number_of_frames=1))
            scan_header = frame[frame.index(b"\xff\xda") :]
            assert scan_header[7] == 1, "transfer syntax .70 means predictor 1"
            readings["libjpeg-turbo"] = imagecodecs.jpeg8_decode(frame).view("<u2" if bits == 12 else "<i2")
        for name, stored in readings.items():
            got = stored.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
            assert (got == expected).all(), name


def read_with_gdcm(path: Path, signed: int) -> np.ndarray:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    buffer = reader.GetImage().GetBuffer().encode("utf-8", errors="surrogateescape")
    return np.frombuffer(buffer, "<i2" if signed else "<u2").reshape(512, 512)


def test_file_numbers_run_with_or_against_the_height(study, tmp_path):
    for head_first in (True, False):
        plan = replace(plan_files(5, 1), syntax="explicit", head_first=head_first)
        paths = write_dicom(tmp_path / str(head_first), study.hu[:6], study.scan, plan)
        heights = [float(pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2]) for p in paths]
        assert [p.stem for p in paths] == [str(n) for n in range(1, 7)]
        assert (np.diff(heights) < 0).all() == head_first and (np.diff(heights) > 0).all() != head_first
        first = pydicom.dcmread(paths[0])
        expected = study.hu[0 if head_first else 5]
        assert (first.pixel_array.astype(int) + int(first.RescaleIntercept) == expected).all()


@pytest.mark.parametrize("orientation", sorted(set(ORIENTATIONS)))
def test_the_affine_puts_the_labels_on_the_bones_of_the_slices(study, tmp_path, orientation):
    plan = replace(plan_files(5, 1), syntax="explicit", orientation=orientation)
    paths = write_dicom(tmp_path / "study", study.hu, study.scan, plan)
    write_segmentation(tmp_path / "mask.nii", study.labels, study.scan, orientation)

    image = nibabel.load(tmp_path / "mask.nii")
    assert "".join(nibabel.aff2axcodes(image.affine)) == orientation and image.get_data_dtype() == np.uint8
    values = np.asarray(image.dataobj)
    voxels = np.argwhere((values >= 1) & (values <= 7))
    patient = nibabel.affines.apply_affine(image.affine, voxels) * (-1, -1, 1)

    slices = sorted((pydicom.dcmread(p) for p in paths), key=lambda ds: -float(ds.ImagePositionPatient[2]))
    volume = np.stack([ds.pixel_array.astype(int) + int(ds.RescaleIntercept) for ds in slices])
    x0, y0, z0 = (float(v) for v in slices[0].ImagePositionPatient)
    step = z0 - float(slices[1].ImagePositionPatient[2])
    pixel = float(slices[0].PixelSpacing[0])
    found = np.stack([(z0 - patient[:, 2]) / step, (patient[:, 1] - y0) / pixel, (patient[:, 0] - x0) / pixel], axis=1)
    k, r, c = np.rint(found).astype(int).T
    assert np.abs(found - np.rint(found)).max() < 0.01
    assert (study.labels[k, r, c] == values[tuple(voxels.T)]).all()
    inside = volume[k, r, c].mean()
    for mirrored in (volume[::-1], volume[:, ::-1], volume[:, :, ::-1]):
        assert inside > mirrored[k, r, c].mean() + 150


def test_masks_stop_somewhere_in_the_upper_thorax():
    person_labels = [make_phantom_study(0, i, 20).labels for i in (8, 11)]
    assert all(labels.max() in (7, 8, 9) for labels in person_labels)
    assert any((labels == 8).any() for labels in person_labels)


def test_default_labels_follow_the_competitions_prevalences():
    drawn = np.zeros((2000, 7), bool)
    for i in range(2000):
        drawn[i, [n - 1 for n in draw_labels(0, i)]] = True
    assert np.abs(drawn.mean(axis=0) - PREVALENCE).max() < 0.01
    assert abs(drawn.any(axis=1).mean() - 0.476) < 0.01
    first = drawn[:24].any(axis=1).sum()
    assert 10 <= first <= 13


@pytest.mark.parametrize(("prevalence", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.26, 0.34)])
def test_a_given_prevalence_holds_for_every_level(prevalence, low, high):
    drawn = np.zeros((1000, 7), bool)
    for i in range(1000):
        drawn[i, [n - 1 for n in draw_labels(0, i, prevalence)]] = True
    assert (drawn.mean(axis=0) >= low).all() and (drawn.mean(axis=0) <= high).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"studies": 0}, "--studies"),
        ({"slices": 2}, "--slices"),
        ({"segmented": -1}, "--segmented"),
        ({"prevalence": 1.5}, "--prevalence"),
        ({"syntax": "jpeg"}, "sv1"),
    ],
)
def test_impossible_wishes_are_named_in_one_line(tmp_path, wrong, named):
    with pytest.raises(UsageError) as caught:
        write_phantom(tmp_path / "set", progress=False, **wrong)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="empty"):
        write_phantom(tmp_path, studies=1, slices=8, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
