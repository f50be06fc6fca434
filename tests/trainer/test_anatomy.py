"""Levels that are sound raise no alarm; what is planted in them is found; noise says nothing about the field of view."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache_schema import LEVELS, StudyRecord
from preprocess.phantom.anatomy import make_person
from preprocess.phantom.raster import vertebra_patch
from preprocess.phantom.scanner import make_scan
from trainer.answers.anatomy import LevelsFound, box_flags, check_levels
from trainer.answers.flags import DISORDERS, REASONS

sys.path.append(str(Path(__file__).resolve().parents[1] / "learn"))

from disorders import KINDS, is_found, planted

PERSONS, SEED = 6, 11
GRID_MM = 1.5
NOISE = 0.03
"""of ratios that `make learn` predicts where a level is not"""
RECORD = StudyRecord(
    id="a",
    study_uid="a",
    series_uid="a",
    rows=512,
    columns=512,
    slices=1,
    spacing=None,
    pixel_spacing=(0.4, 0.4),
    slice_spacing=None,
    orientation=(1, 0, 0, 0, 1, 0),
    position=(0, 0, 0),
    transfer_syntax="1.2.840.10008.1.2.1",
    decoder="",
    source_digest="",
)
FULL = (0, 0, 512, 512)


@pytest.fixture(scope="module")
def necks() -> list[tuple[np.ndarray, np.ndarray]]:
    """(z, ratios) of persons: mm from head to feet every half millimetre, and the area of C1..C7 there over its largest."""
    return [_neck(index) for index in range(PERSONS)]


def _neck(index: int) -> tuple[np.ndarray, np.ndarray]:
    person = make_person(SEED, index)
    scan = make_scan(SEED, index, person, 96)
    x, y = (np.arange(axis.min(), axis.max(), GRID_MM) for axis in (scan.columns(), scan.rows()))
    z = np.arange(scan.z[0], scan.z[-1], -0.5)
    area = np.zeros((len(z), len(LEVELS)))
    for number, vertebra in enumerate(person.vertebrae[: len(LEVELS)]):
        for at, height in enumerate(z):
            patch = vertebra_patch(vertebra, x, y, float(height), None, False)
            area[at, number] = 0 if patch is None else (patch.edge < 0).sum()
    return z, area / area.max(axis=0)


def sampled(neck: tuple[np.ndarray, np.ndarray], spacing: float, first: int = 1) -> tuple[np.ndarray, pd.DataFrame]:
    """z of slices so far apart, and the truth at the middle slices of their triplets."""
    z, ratios = neck[0][:: round(spacing / 0.5)], neck[1][:: round(spacing / 0.5)]
    return z, pd.DataFrame(ratios[first::3], columns=list(LEVELS)).assign(z_index=range(first, len(z), 3))


def predicted(z: np.ndarray, truth: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As a model would: smeared along z and over the neighbours, with levels of unequal height, and noise."""
    rng, place = np.random.default_rng(seed), z[truth["z_index"]]
    weights = np.exp(-0.5 * ((place[:, None] - place[None]) / 4) ** 2)
    ratios = weights @ truth[list(LEVELS)].to_numpy() / weights.sum(axis=1, keepdims=True)
    leak = np.eye(7) + 0.15 * (np.eye(7, k=1) + np.eye(7, k=-1))
    ratios = ratios @ leak * rng.uniform(0.6, 1, 7) + NOISE * rng.standard_normal(ratios.shape)
    return pd.DataFrame(ratios, columns=list(LEVELS)).assign(z_index=truth["z_index"])


def check(curves: pd.DataFrame, z: np.ndarray, box=FULL, z_range=None, source="full_frame"):
    flags, outside = check_levels(curves, z, z_range or (0, len(z)), source)
    flags = (*box_flags(box, source, RECORD), *flags)
    assert {flag.reason for flag in flags} <= REASONS.keys()
    named = {flag.level for flag in flags if flag.reason == "outside_field"}
    assert set(outside) == (set(LEVELS) if "no level is found" in {flag.message for flag in flags} else named)
    return flags, outside


def reasons(flags) -> set[str]:
    return {flag.reason for flag in flags} - {"no_box"}


@pytest.mark.parametrize("spacing", [0.5, 1, 2, 3, 4, 5])
def test_sound_levels_raise_no_alarm(necks, spacing):
    for seed, neck in enumerate(necks):
        for first in range(3):
            z, truth = sampled(neck, spacing, first)
            for curves in (truth, predicted(z, truth, seed)):
                flags, outside = check(curves, z)
                assert not outside and not reasons(flags) & DISORDERS, (seed, first, flags)


@pytest.mark.parametrize("spacing", [0.5, 1, 2, 3])
def test_planted_disorders_are_found(necks, spacing):
    curves, heights = {}, {}
    for seed, neck in enumerate(necks):
        heights[str(seed)], truth = sampled(neck, spacing)
        curves[str(seed)] = predicted(heights[str(seed)], truth, seed)
    kinds = []
    for plant in planted(curves, heights, 200, seed=int(10 * spacing)):
        flags, outside = check(plant.curves, plant.z)
        assert is_found(plant, flags, outside), (plant.kind, plant.levels, flags)
        kinds.append(plant.kind)
    assert {kinds.count(kind) for kind in KINDS} == {40}


def test_a_head_ct_has_no_levels_below_those_that_are_seen(necks):
    z, truth = sampled(necks[0], 1)
    end = int(truth["z_index"][truth["C1"].argmax()]) + 6
    shown = truth[truth["z_index"] < end]
    flags, outside = check(shown, z[:end])
    assert set(LEVELS[2:]) <= set(outside) <= set(LEVELS[1:])
    assert set(outside.values()) <= {
        f"the field of view ends {side} C{n}" for n in (1, 2) for side in ("within", "below")
    }
    assert "cut_end" in reasons(flags) and not reasons(flags) & DISORDERS


def test_levels_that_the_model_missed_are_not_outside(necks):
    z, truth = sampled(necks[0], 1)
    flags, outside = check(truth.assign(C1=0.0, C7=0.0), z)
    assert not outside and [flag.level for flag in flags if flag.reason == "level_missing"] == ["C1", "C7"]


def test_disorder_keeps_every_probability(necks):
    z, truth = sampled(necks[0], 1)
    end = int(truth["z_index"][truth["C4"].argmax()])
    shown = truth[truth["z_index"] < end].rename(columns={"C2": "C3", "C3": "C2"})
    flags, outside = check(shown, z[:end])
    assert not outside and {"levels_out_of_order", "cut_end"} <= reasons(flags)


@pytest.mark.parametrize("spacing", [0.5, 2, 5])
@pytest.mark.parametrize("kind", ["zero", "constant", "quiet", "loud", "uniform", "smooth"])
def test_noise_is_flagged_and_no_level_of_it_lies_beyond_the_others(kind, spacing):
    rng, z = np.random.default_rng(1), -np.arange(0, 220, spacing)
    index = np.arange(1, len(z), 3)
    for _ in range(50):
        noise = rng.standard_normal((len(index), 7))
        drawn = {
            "zero": 0 * noise,
            "constant": 0.4 + 0.02 * noise,
            "quiet": 0.1 * noise,
            "loud": 0.3 * noise,
            "uniform": rng.random(noise.shape),
            "smooth": 0.5 * np.cumsum(noise, axis=0) / np.abs(np.cumsum(noise, axis=0)).max(),
        }[kind]
        flags, outside = check(pd.DataFrame(drawn, columns=list(LEVELS)).assign(z_index=index), z)
        assert reasons(flags) and len(outside) in (0, 7)


def test_models_find_levels_or_not(necks):
    _, truth = sampled(necks[0], 1)
    sound, weak = truth.assign(id="a"), truth.assign(id="b", **{level: 0.4 * truth[level] for level in LEVELS})
    assert LevelsFound.of([]) is None
    assert LevelsFound.of([sound, weak]) == (1, 2) and LevelsFound.of([sound, weak]).in_most
    assert not LevelsFound.of([weak]).in_most


def test_where_no_level_is_found_none_gets_a_probability(necks):
    z, truth = sampled(necks[0], 1)
    flags, outside = check(truth.assign(**dict.fromkeys(LEVELS, 0.1)), z)
    assert reasons(flags) == {"level_missing"} and set(outside.values()) == {"no level is found"}


def test_slices_that_belong_to_no_level_are_a_gap(necks):
    z, truth = sampled(necks[0], 1)
    lower = z[truth["z_index"]] < z[int(truth["z_index"][truth["C4"].argmax()])] - 8
    apart = z.copy()
    apart[int(truth["z_index"][lower.argmax()]) - 1 :] -= 30
    flags, _ = check(truth, apart)
    assert reasons(flags) == {"gap"}


def test_a_box_at_the_frame_and_levels_outside_it_are_named(necks):
    z, truth = sampled(necks[0], 1)
    assert [flag.reason for flag in check(truth, z)[0]] == ["no_box"]
    assert not check(truth, z, (10, 10, 500, 500), source="model")[0]
    (touching,) = check(truth, z, (0, 10, 500, 512), source="model")[0]
    assert touching == ("box_at_frame", "the box touches the image's edge: left, bottom", "")
    (outside,) = check(truth, z, (10, 10, 500, 500), (0, int(truth["z_index"][truth["C7"].argmax()]) - 8), "model")[0]
    assert (outside.reason, outside.level) == ("outside_box", "C7")
