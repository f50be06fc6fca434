"""Two patients in one study refuse it, and nothing of what tells them apart is kept or shown."""

import pytest
from dicom_files import STUDY, picture, plan_one, write_series, write_slice

from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.mark.parametrize("series", ["1", "2"])
@pytest.mark.parametrize("offset", [0.0, 0.74])
def test_two_patient_ids_in_one_study_refuse_it_in_one_series_or_in_two(tmp_path, series, offset):
    write_series(tmp_path / "a", 6, PatientID="SECRET-1")
    write_series(tmp_path / "b", 6, start=100.0 - offset, series=series, first=11, PatientID="SECRET-2")
    plans, findings = plan_studies(tmp_path)
    assert plans == [] and [(f.id, f.severity, f.reason) for f in findings] == [(STUDY, "refused", "two_patients")]
    assert "SECRET" not in str(findings)


def test_one_patient_whose_id_is_padded_in_several_ways_is_one(tmp_path):
    for k, text in enumerate(("P1", "P1 ", " P1", "P1\0", "P1  ", "")):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=100.0 - 2 * k, number=k + 1, PatientID=text)
    assert plan_one(tmp_path)[1] == {}


def test_an_id_of_its_own_in_every_file_says_nothing_and_is_flagged(tmp_path):
    for k in range(6):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=100.0 - 2 * k, number=k + 1, PatientID=f"SECRET{k}")
    plans, (finding,) = plan_studies(tmp_path)
    assert len(plans[0].slices) == 6 and (finding.severity, finding.reason) == ("flagged", "patient_ids_differ")


def test_folders_with_frames_of_reference_of_their_own_under_one_series_are_two_patients(tmp_path):
    write_series(tmp_path / "a", 6, FrameOfReferenceUID="1.2.1")
    write_series(tmp_path / "b", 6, start=99.3, first=11, FrameOfReferenceUID="1.2.2")
    assert plan_one(tmp_path) == (None, {"two_patients": "refused"})


def test_two_scans_of_one_patient_under_series_of_their_own_are_two_series(tmp_path):
    for series in ("1", "2"):
        folder = tmp_path / series
        write_series(folder, 6, series=series, PatientID="P1", FrameOfReferenceUID=f"1.2.{series}")
    plan, found = plan_one(tmp_path)
    assert len(plan.slices) == 6 and found == {"series_left_out": "flagged"}


def test_reports_of_another_patient_beside_the_images_do_not_count(tmp_path):
    write_series(tmp_path / "ct", 6, PatientID="P1")
    write_series(tmp_path / "other", 3, series="2", Modality="MR", PatientID="P2")
    plan, found = plan_one(tmp_path)
    assert len(plan.slices) == 6 and found == {"not_ct": "flagged"}
