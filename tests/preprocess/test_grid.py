"""One grid for all slices: drift of the in-plane origin is a shear, a step away from its line is a jump."""

import numpy as np
import pytest
from dicom_files import picture, plan_one, write_slice

from preprocess.series.planning import plan_studies


def series(folder, origins, *, step=1.0, heights=None):
    """Slices whose first pixels lie at these x and y."""
    for k, (x, y) in enumerate(origins):
        z = 100.0 - (step * k if heights is None else heights[k])
        write_slice(
            folder / f"{k}.dcm", picture(k), number=k + 1, ImagePositionPatient=[f"{x:.4f}", f"{y:.4f}", f"{z:.4f}"]
        )
    return folder


@pytest.mark.parametrize("along", [0, 1])
def test_a_drift_is_flagged_with_its_degrees(tmp_path, along):
    origins = np.full((20, 2), -8.0)
    origins[:, along] += 0.2 * np.arange(20)
    plans, (finding,) = plan_studies(series(tmp_path, origins))
    assert plans[0].flags == ("shear",) and finding.severity == "flagged" and "11.3 degrees" in finding.message


def test_gaps_and_changes_of_spacing_under_a_drift_are_no_jumps(tmp_path):
    heights = np.array([0, 1, 2, 3, 5, 6, 7, 8, 10, 12, 14, 16, 18], float)
    found = plan_one(series(tmp_path, np.stack([-8 + 0.3 * heights, np.full(13, -6)], 1), heights=heights))[1]
    assert "origin_jump" not in found and found["shear"] == "flagged"


@pytest.mark.parametrize(("jump", "severity"), [(0.1, None), (0.7, "flagged"), (1.3, "refused"), (6.0, "refused")])
@pytest.mark.parametrize("from_to", [(10, 20), (7, 11), (18, 20)])
def test_a_jump_is_flagged_in_mm_and_refused_above_one_slice_spacing(tmp_path, jump, severity, from_to):
    origins = np.tile([-8.0, -6.0], (20, 1))
    origins[slice(*from_to), 0] -= jump
    plans, findings = plan_studies(series(tmp_path, origins))
    assert [(f.reason, f.severity) for f in findings] == ([("origin_jump", severity)] if severity else [])
    assert severity is None or f"{jump:.1f} mm" in findings[0].message
    assert bool(plans) == (severity != "refused")


def test_rounded_positions_neither_jump_nor_drift(tmp_path):
    chance = np.random.default_rng(1)
    origins = np.round(np.array((-8.0, -6.0)) + chance.uniform(-0.05, 0.05, (30, 2)), 1)
    assert plan_one(series(tmp_path, origins, step=0.6))[1] == {}
