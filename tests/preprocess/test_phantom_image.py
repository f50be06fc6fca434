"""What the phantom's pictures promise: size of the breaks, noise, how much of the frame is body, how well it compresses."""

import numpy as np
import pytest
from numcodecs import Zstd
from scipy.ndimage import binary_fill_holes, map_coordinates

from preprocess.phantom.anatomy import make_person
from preprocess.phantom.fractures import possible_fractures
from preprocess.phantom.raster import Patch, vertebra_patch
from preprocess.phantom.scanner import Scan, expose, make_scan
from preprocess.phantom.study import make_phantom_study
from preprocess.phantom.truth import study_box


def windowed(hu: np.ndarray) -> np.ndarray:
    return np.rint((np.clip(hu.astype(float), -500, 1300) + 500) * 255 / 1800).astype(np.uint8)


@pytest.fixture(scope="module")
def sample() -> list:
    """Eight slices, evenly over the scan, of each of the first sixteen studies."""
    return [make_phantom_study(0, i, 8) for i in range(16)]


@pytest.fixture(scope="module")
def twins() -> tuple:
    return make_phantom_study(2, 3, 48), make_phantom_study(2, 3, 48, [5])


def test_body_fills_60_to_80_percent_of_the_frame(sample):
    shares = [binary_fill_holes(windowed(s) > 25).mean() for study in sample for s in study.hu]
    assert 0.60 < np.mean(shares) < 0.80


def test_the_set_compresses_like_real_ct(sample):
    ratios = []
    for study in sample:
        u = windowed(study.hu)
        packed = sum(len(Zstd(level=1).encode(np.ascontiguousarray(u[k : k + 8]))) for k in range(0, len(u), 8))
        ratios.append(u.size / packed)
    assert 2.3 < np.mean(ratios) < 3.2


def test_noise_is_20_to_30_hu_and_has_texture():
    flat = np.full((512, 512), 50, np.float32)
    for index in range(6):
        scan = make_scan(0, index, make_person(0, index), 96)
        noise = expose(scan, 0, index, 7, flat) - 50.0
        assert 20 < noise.std() < 30 and abs(noise.mean()) < 1
        neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
        assert neighbours > 0.4


def test_every_slice_has_noise_of_its_own(twins):
    intact, _ = twins
    flat = np.full((512, 512), 0, np.float32)
    one, two = (expose(intact.scan, 2, 3, n, flat).astype(float).ravel() for n in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02


def test_twins_differ_only_around_the_broken_vertebra(twins):
    intact, broken = twins
    changed = intact.hu != broken.hu
    assert changed.any()
    either = (intact.labels == 5) | (broken.labels == 5)
    z, y, x = (np.flatnonzero(either.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    rim = 12
    near = np.zeros_like(changed)
    near[max(z[0] - 1, 0) : z[-1] + 2, y[0] - rim : y[-1] + rim, x[0] - rim : x[-1] + rim] = True
    assert not (changed & ~near).any()
    assert (intact.labels[~near] == broken.labels[~near]).all()


def test_a_gap_is_dark_between_bright_halves(twins):
    intact, broken = twins
    gap = (intact.labels == 5) & (broken.labels == 0)
    stays = (intact.labels == 5) & (broken.labels == 5)
    assert gap.sum() > 500
    assert broken.hu[stays].mean() - broken.hu[gap].mean() > 250


@pytest.mark.parametrize("index", range(2))
def test_breaks_are_4_px_wide_and_6_slices_long(index):
    """Measured on the rasterised bone: along the break's normal, and over the slices of a 96-slice study."""
    person = make_person(0, index)
    scan = make_scan(0, index, person, 96)
    x, y = scan.columns(), scan.rows()
    box = study_box(make_phantom_study(0, index, 12, range(1, 8)).labels)
    side = max(box["x1"] - box["x0"], box["y1"] - box["y0"])
    for level, fracture in possible_fractures(0, index, person).items():
        vertebra = person.vertebrae[level - 1]
        normal = vertebra.rotation @ fracture.normal
        assert abs(normal[2]) < 1e-9, "a break stands upright"
        point = vertebra.to_patient(fracture.point[None])[0]
        widths = []
        for z in scan.z:
            whole, broken = (vertebra_patch(vertebra, x, y, float(z), f) for f in (None, fracture))
            if whole is not None:
                widths.append(gap_width(whole, broken, point, normal, scan))
        wide = [w * 128 / side for w in widths if w * 128 / side >= 4]
        assert len(wide) >= 6, (level, fracture.kind, np.round(np.array(widths) * 128 / side, 1))


def gap_width(whole: Patch, broken: Patch, point: np.ndarray, normal: np.ndarray, scan: Scan) -> float:
    """Pixels between the two broken faces, on the best of some lines across the break; 0 where no bone is parted."""
    shift, step = np.meshgrid(np.arange(-20, 21, 4), np.arange(-8, 8, 0.1), indexing="ij")
    px = point[0] - normal[1] * shift + normal[0] * step
    py = point[1] + normal[0] * shift + normal[1] * step
    at = np.array([(py - scan.y) / scan.pixel, (px - scan.x) / scan.pixel])
    before, after = (
        map_coordinates(p.edge, at - np.array([p.rows.start, p.columns.start])[:, None, None], order=1, cval=9.0)
        for p in (whole, broken)
    )
    middle, best = step.shape[1] // 2, 0
    for was, now in zip(before, after, strict=True):
        left, right = now[middle::-1] < 0, now[middle:] < 0
        if was[middle] < -1 and left.any() and right.any():
            best = max(best, int(left.argmax() + right.argmax()))
    return best * 0.1 / scan.pixel


def test_decoys_stay_smaller_than_breaks():
    for index in range(6):
        person = make_person(0, index)
        narrowest = min(f.gap * person.vertebrae[n - 1].scale for n, f in possible_fractures(0, index, person).items())
        assert any(v.spurs for v in person.vertebrae[:7]) and all(v.canals for v in person.vertebrae[:7])
        assert max(2 * c.r0 * v.scale for v in person.vertebrae[:7] for c in v.canals) < 0.75 * narrowest


def test_the_mean_box_and_a_fixed_place_are_no_answer(sample):
    boxes, places = [], []
    for study in sample:
        neck = (study.labels > 0) & (study.labels < 8)
        for k in np.flatnonzero(neck.any(axis=(1, 2))):
            columns, rows = np.flatnonzero(neck[k].any(axis=0)), np.flatnonzero(neck[k].any(axis=1))
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        slices = np.arange(len(neck)) + 0.5
        weight = (study.labels == 4).sum(axis=(1, 2))
        places.append((slices * weight).sum() / weight.sum() / len(neck))
    boxes = np.array(boxes, float)
    mean = boxes.mean(axis=0)
    over = np.clip(np.minimum(boxes[:, 2:], mean[2:]) - np.maximum(boxes[:, :2], mean[:2]), 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (mean[2:] - mean[:2]).prod()
    assert np.mean(over / (areas - over)) < 0.55
    assert np.std(places) > 0.04, "C4 lies elsewhere in every scan"
