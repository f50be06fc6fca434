"""Which of a study's series is kept, and what is said of the others."""

import numpy as np
import pytest
from dicom_files import STUDY, expected_grey, grey, picture, plan_one, write_series, write_slice

from preprocess.series.planning import plan_studies
from preprocess.series.stacks import kernel_sharpness

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def kept_and_left(source):
    plans, findings = plan_studies(source)
    return plans[0], [f.message for f in findings if f.reason == "series_left_out"]


def test_scouts_and_reformats_are_left_out_and_listed(tmp_path):
    write_series(tmp_path / "axial", 6)
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_slice(tmp_path / "scout.dcm", series="2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **sagittal)
    write_slice(tmp_path / "sag.dcm", series="3", **sagittal)
    write_series(tmp_path / "mpr", 6, series="4", ImageType=["DERIVED", "SECONDARY", "MPR"], SliceThickness="0.5")
    plan, left = kept_and_left(tmp_path)
    assert plan.series_uid == f"{STUDY}.1" and len(plan.slices) == 6
    assert sorted(left) == ["1 images: a localizer", "1 images: not axial", "6 images: derived images beside originals"]


def test_a_scout_within_the_series_is_left_out_too(tmp_path):
    write_series(tmp_path, 6)
    changes = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_slice(tmp_path / "0.dcm", number=99, **changes)
    plan, found = plan_one(tmp_path)
    assert plan is not None and len(plan.slices) == 6 and found == {"series_left_out": "flagged"}


def test_the_thinnest_then_the_sharpest_series_is_kept(tmp_path):
    write_series(tmp_path / "thick", 3, step=-4, series="1", SliceThickness="4", kernel="B70s")
    write_series(tmp_path / "soft", 6, series="2", kernel="B30s")
    write_series(tmp_path / "sharp", 6, series="3", kernel="B60s")
    plan, left = kept_and_left(tmp_path)
    assert plan.series_uid == f"{STUDY}.3"
    assert sorted(left) == ["3 images: thicker slices", "6 images: a softer kernel"]


def test_a_short_thin_series_does_not_beat_the_volume(tmp_path):
    write_series(tmp_path / "volume", 12, SliceThickness="2")
    write_series(tmp_path / "bolus", 2, step=-1, series="2", SliceThickness="0.5", kernel="B70s")
    plan, left = kept_and_left(tmp_path)
    assert len(plan.slices) == 12 and left == ["2 images: it covers less than half as much"]


@pytest.mark.parametrize(
    ("worse", "better", "why"),
    [
        ({"kernel": "STANDARD"}, {"kernel": "BONEPLUS"}, "a softer kernel"),
        ({"SliceThickness": "5"}, {"SliceThickness": "2"}, "thicker slices"),
    ],
)
def test_two_reconstructions_at_the_same_positions_are_never_interleaved(worse, better, why, tmp_path):
    write_series(tmp_path, 6, **worse)
    for k in range(6):
        write_slice(tmp_path / f"{20 + k}.dcm", picture(50 + k), z=100 - 2 * k, number=20 + k, **better)
    plan, left = kept_and_left(tmp_path)
    assert plan.slice_number.tolist() == [20, 21, 22, 23, 24, 25] and left == [f"6 images: {why}"]
    assert np.array_equal(grey(plan), expected_grey(np.stack([picture(50 + k) for k in range(6)])))


def test_one_series_may_change_its_thickness_on_the_way(tmp_path):
    write_series(tmp_path, 3, SliceThickness="2")
    write_series(tmp_path, 3, start=92, step=-4, first=4, SliceThickness="4")
    plan, found = plan_one(tmp_path)
    assert len(plan.slices) == 6 and found == {"uneven_spacing": "flagged"}


def test_a_damaged_slice_in_a_series_left_out_harms_nothing(tmp_path):
    write_series(tmp_path / "good", 6)
    write_series(tmp_path / "thick", 2, step=-6, series="2", SliceThickness="6", remove=("PixelSpacing",))
    assert len(plan_one(tmp_path)[0].slices) == 6


def test_other_modalities_are_listed_and_a_study_without_ct_is_refused(tmp_path):
    write_series(tmp_path / "ct", 3)
    write_series(tmp_path / "mr", 3, series="2", Modality="MR")
    write_series(tmp_path / "mr only", 3, study="1.2.3", Modality="MR")
    plans, findings = plan_studies(tmp_path)
    assert [plan.id for plan in plans] == [STUDY]
    refused = [(f.id, f.reason) for f in findings if f.severity == "refused"]
    assert refused == [("1.2.3", "no_axial_series")] and sum(f.reason == "not_ct" for f in findings) == 2


def test_findings_never_carry_text_of_the_header(tmp_path):
    write_series(tmp_path / "a", 3, kernel="SECRET^NAME", PhotometricInterpretation="SECRET^NAME")
    write_series(tmp_path / "b", 3, study="1.2.3", InstanceNumber=None, RescaleIntercept=None)
    _, findings = plan_studies(tmp_path)
    assert findings and not any("SECRET" in f"{f.id}{f.file}{f.reason}{f.message}" for f in findings)


def test_kernels_are_ordered_by_sharpness():
    for vendor in (["B20s", "B31f", "B60s", "B70s"], ["SOFT", "STANDARD", "BONE", "BONEPLUS", "EDGE"], ["A", "B", "D"]):
        assert sorted(vendor, key=kernel_sharpness) == vendor
    assert kernel_sharpness("") == 0
