"""Header, histogram and file size say nothing about the label: only the bone does."""

import numpy as np
import pydicom
import pytest
from scipy.stats import rankdata

from preprocess.phantom.anatomy import make_person
from preprocess.phantom.dicom import plan_files, write_dicom
from preprocess.phantom.labels import draw_labels
from preprocess.phantom.scanner import make_scan
from preprocess.phantom.study import make_phantom_study

STUDIES, SLICES = 8, 10


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = rankdata(scores)
    positive = labels.sum()
    return (ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * (~labels).sum())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[tuple[list, list]]:
    """Eight persons, whole and with one or two broken levels: of each the headers, histogram and file sizes."""
    root = tmp_path_factory.mktemp("twins")
    made = []
    for index in range(STUDIES):
        plan = plan_files(0, index)
        levels = {1 + index % 7, 1 + (3 * index + 4) % 7}
        twins = []
        for name, broken in (("whole", ()), ("broken", levels)):
            study = make_phantom_study(0, index, SLICES, broken)
            paths = write_dicom(root / str(index) / name, study.hu, study.scan, plan)
            twins.append((paths, study.hu))
        made.append(tuple(twins))
    return made


def histogram(hu: np.ndarray) -> np.ndarray:
    """Shares of the study in coarse bins of the window, the mean and the spread."""
    edges = [-2000, -500, -200, -50, 0, 50, 100, 200, 300, 400, 600, 800, 1000, 1300, 4000]
    share = np.histogram(hu, edges)[0] / hu.size
    return np.array([*share, hu.mean(), hu.std()])


def test_the_headers_of_twins_are_equal(pairs):
    for whole, broken in pairs:
        for a, b in zip(whole[0], broken[0], strict=True):
            assert pydicom.dcmread(a, stop_before_pixels=True) == pydicom.dcmread(b, stop_before_pixels=True)


def test_a_break_changes_the_size_of_the_files_by_less_than_half_a_percent(pairs):
    sizes = np.array([[sum(p.stat().st_size for p in twin[0]) for twin in pair] for pair in pairs], float)
    assert np.abs(sizes[:, 1] / sizes[:, 0] - 1).max() < 0.005
    assert abs(area_under_curve(sizes.T.ravel(), np.repeat([False, True], STUDIES)) - 0.5) < 0.1


def test_a_break_moves_no_part_of_the_histogram_by_what_persons_differ(pairs):
    whole, broken = (np.array([histogram(pair[side][1]) for pair in pairs]) for side in (0, 1))
    between_persons = whole.std(axis=0)
    moved = np.abs((broken - whole).mean(axis=0))
    assert (moved < 0.15 * between_persons).all(), np.round(moved / between_persons, 3)
    labels = np.repeat([False, True], STUDIES)
    for feature in np.concatenate([whole, broken]).T:
        assert abs(area_under_curve(feature, labels) - 0.5) < 0.15


def test_nothing_that_a_header_tells_goes_with_the_label():
    """Six hundred studies without their pixels: each header value against broken or not."""
    n = 600
    told, broken = [], []
    for index in range(n):
        plan, scan = plan_files(0, index), make_scan(0, index, make_person(0, index), 96)
        told.append(
            [
                int(plan.study_uid.rpartition(".")[2]),
                list(["sv1", "explicit", "rle", "j2k"]).index(plan.syntax),
                plan.bits,
                plan.head_first,
                hash_of(plan.orientation),
                scan.pixel,
                scan.spacing,
                scan.x,
                scan.y,
                scan.z[0],
                scan.noise,
            ]
        )
        broken.append(bool(draw_labels(0, index)))
    told, broken = np.array(told, float), np.array(broken)
    curves = [area_under_curve(value, broken) for value in told.T]
    # three standard errors of an AUC of 0.5 with some 285 broken of 600
    assert np.abs(np.array(curves) - 0.5).max() < 0.075, np.round(curves, 3)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % 97
