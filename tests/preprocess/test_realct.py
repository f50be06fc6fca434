"""Real CT files: kept, flagged, ordered, and decoded like an independent decoder with plain float64 arithmetic does."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from preprocess import studies
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

ROOT = Path(__file__).resolve().parents[2]
REALCT = Path(os.environ.get("CSPINE_REALCT") or ROOT / ".." / "shared" / "realct")

pytestmark = [
    pytest.mark.skipif(not REALCT.is_dir(), reason="no real CT files: name their folder by CSPINE_REALCT"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
]


@pytest.fixture(scope="module")
def found():
    plans, findings = plan_studies(REALCT)
    by_folder = {Path(plan.slices[0].path).relative_to(REALCT).parts[0]: plan for plan in plans}
    return by_folder, findings


def test_the_three_studies_are_kept_and_every_flag_has_its_row(found):
    plans, findings = found
    assert set(plans) == {"ge_head", "siemens_neck_sv1", "noise_gantry_tilt"}
    assert {f.severity for f in findings} == {"flagged"}
    for plan in plans.values():
        assert tuple(sorted(f.reason for f in findings if f.id == plan.id)) == plan.flags


def test_the_ge_head_runs_from_the_top_along_its_tilted_normal(found):
    plan = found[0]["ge_head"]
    assert plan.flags == ("gantry_tilt", "shear", "uneven_spacing") and len(plan.slices) == 28
    assert [Path(place.path).name for place in plan.slices] == [f"{n:02d}.dcm" for n in range(28, 0, -1)]
    assert plan.slice_number.tolist() == list(range(28, 0, -1))
    headers = [pydicom.dcmread(place.path, stop_before_pixels=True) for place in plan.slices]
    row, column = np.split(np.array(headers[0].ImageOrientationPatient, float), 2)
    heights = np.array([header.ImagePositionPatient for header in headers], float) @ np.cross(row, column)
    assert np.allclose(plan.z, heights, atol=1e-4) and (np.diff(plan.z) < 0).all()
    assert plan.slice_spacing["min"] == pytest.approx(1.08, abs=0.01)
    assert plan.slice_spacing["max"] == pytest.approx(7.0, abs=0.01)
    assert np.degrees(np.arccos(np.cross(row, column)[2])) == pytest.approx(18.5, abs=0.05)


def test_the_neck_slice_leaves_its_spacing_open_and_its_uids_are_flagged(found):
    plan = found[0]["siemens_neck_sv1"]
    assert plan.flags == ("invalid_uid", "single_slice") and plan.spacing is None and plan.slice_spacing is None
    assert plan.transfer_syntax == "1.2.840.10008.1.2.4.70" and DicomPixels(plan).decoder == "turbo"


def test_the_noise_is_kept_with_the_tilt_of_its_orientation(found):
    plan = found[0]["noise_gantry_tilt"]
    assert plan.flags == ("gantry_tilt", "shear") and len(plan.slices) == 4
    assert np.allclose(plan.spacing, (5 * 0.970295726, 0.41796875, 0.41796875))


def test_pixels_equal_an_independent_decode(found):
    for plan in found[0].values():
        grey = DicomPixels(plan).read(0, len(plan.slices))
        for picture, place in zip(grey, plan.slices, strict=True):
            header = pydicom.dcmread(place.path, stop_before_pixels=True)
            compressed = header.file_meta.TransferSyntaxUID.is_encapsulated
            for decoder in ("gdcm", "pylibjpeg") if compressed else ("",):
                stored = pixel_array(place.path, decoding_plugin=decoder).astype(np.float64)
                hu = stored * float(header.RescaleSlope) + float(header.RescaleIntercept)
                expected = np.round((np.clip(hu, -500, 1300) + 500) * 255 / 1800)
                assert np.array_equal(picture, expected)


def test_as_studies_they_know_their_geometry_and_nothing_of_the_patient():
    for study in studies(REALCT):
        assert study.read(0, 1).shape == (1, 512, 512)
        assert np.allclose(study.record.orientation[:3], (1, 0, 0)) and study.record.orientation[4] > 0.94
        assert str(REALCT) not in study.record.model_dump_json()
