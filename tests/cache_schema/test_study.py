"""Studies in memory: reading, geometry, digests."""

import pickle

import numpy as np
import pytest
from made_studies import InMemory, make_study, record
from pydantic import ValidationError

from cache_schema import Study
from cache_schema.layout import PIXEL_HASH
from cache_schema.study import ContentDigest, Origin, blocks, segmentation_digest


def content_digest(study):
    digest = ContentDigest(study)
    for block in blocks(study):
        digest.update(block)
    return digest.hexdigest()


def test_a_window_and_its_crop_are_what_numpy_slices():
    study = make_study()
    whole = study.pixels.array
    assert np.array_equal(study.read(3, 11), whole[3:11])
    assert np.array_equal(study.read(3, 11, (5, 2, 20, 9)), whole[3:11, 2:9, 5:20])


@pytest.mark.parametrize(
    "window", [(-1, 3), (0, 20), (5, 5), (0, 3, (0, 0, 25, 20)), (0, 3, (-1, 0, 4, 4)), (0, 3, (4, 4, 4, 8))]
)
def test_reading_outside_of_the_study_is_an_error_and_no_wrapped_index(window):
    with pytest.raises(ValueError):
        make_study().read(*window)


def test_boxes_of_a_cropped_study_stay_native():
    whole = make_study().pixels.array
    origin = Origin(x0=4, y0=6, rows=10, columns=12, parent="abc")
    cropped = Study(record(origin=origin), np.arange(19)[::-1], np.arange(19), InMemory(whole[:, 6:16, 4:16]))
    assert cropped.record.stored_region == (4, 6, 16, 16) and cropped.record.shape == (19, 10, 12)
    assert np.array_equal(cropped.read(0, 2), whole[:2, 6:16, 4:16])
    assert np.array_equal(cropped.read(0, 2, (5, 7, 9, 12)), whole[:2, 7:12, 5:9])
    with pytest.raises(ValueError):
        cropped.read(0, 2, (0, 0, 8, 8))


def test_value_range_is_read_where_the_source_does_not_keep_it():
    study = make_study()
    assert study.value_range.dtype == np.uint8
    assert np.array_equal(study.value_range, [(p.min(), p.max()) for p in study.pixels.array])


def test_a_study_travels_between_processes():
    study = pickle.loads(pickle.dumps(make_study()))
    assert np.array_equal(study.read(0, 19), make_study().pixels.array)


@pytest.mark.parametrize("z", [np.arange(19.0), np.zeros(19), np.full(19, np.nan), np.arange(18.0)[::-1]])
def test_slices_must_run_from_head_to_feet(z):
    with pytest.raises(ValueError):
        Study(record(), z, np.arange(19), make_study().pixels)


def test_slice_numbers_that_do_not_fit_are_refused_and_not_wrapped():
    with pytest.raises(ValueError):
        Study(record(), np.arange(19)[::-1], np.arange(19) + 2**31, make_study().pixels)


def test_the_content_digest_is_over_pixels_places_and_geometry_only():
    first = make_study()
    digest = content_digest(first)
    same = [
        make_study(segmented=False),
        make_study(decoder="gdcm", transfer_syntax="1.2", source_digest="other", flags=("gantry_tilt",)),
        make_study(id="9.9"),
        make_study(position=(-10.0, -12.5, 30.0 + 0.0)),
    ]
    other_pixel = make_study()
    other_pixel.pixels.array[5, 5, 5] ^= 1
    numbers = Study(first.record, first.z, first.slice_number + 1, first.pixels)
    moved = Study(first.record, first.z + 1, first.slice_number, first.pixels)
    geometry = [make_study(position=(-10.0, -12.5, 30.5)), make_study(spacing=(1.5, 0.5, 0.5))]
    turned = make_study(orientation=(1, 0, 0, 0, 0.96, -0.28))
    assert {content_digest(study) for study in same} == {digest}
    different = [content_digest(study) for study in (other_pixel, numbers, moved, turned, *geometry)]
    assert len({digest, *different}) == 7


def test_zero_has_one_digest_whatever_its_sign():
    assert content_digest(make_study(position=(0.0, 0, 0))) == content_digest(make_study(position=(-0.0, 0, 0)))


def test_digests_do_not_change_between_versions_of_this_project():
    study = make_study(slices=9)
    study.pixels.array[:] = np.arange(9, dtype=np.uint8)[:, None, None]
    assert PIXEL_HASH == "55dc833430393208711398382c53ca676da5a37c6d7a02b1558d4036a6bb928d"
    assert content_digest(study) == "af4fe504b270b0fcbd100e4f30f0b86a0859d9e826b25ecc5bc22b37eddd9e09"
    assert segmentation_digest(study) == "9fa0912c7d27b9c7e3c9d31e4f5680ce42c6c2b150477fd1510c2bb0e2a59017"


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../etc"},
        {"id": "a..b"},
        {"id": ""},
        {"id": "x" * 65},
        {"rows": 0},
        {"position": (0, 0, float("nan"))},
        {"spacing": (0, 1, 1)},
        {"flags": ("b", "a")},
        {"patient": "x"},
        {"origin": {"x0": 0, "y0": 0, "rows": 21, "columns": 24, "parent": "abc"}},
        {
            "origin": {"x0": 4, "y0": 0, "rows": 9, "columns": 9, "parent": "abc"},
            "study_box": {"x0": 3, "y0": 0, "x1": 5, "y1": 5, "z_from": 0, "z_to": 5, "made_by": "t"},
        },
        {"study_box": {"x0": 0, "y0": 0, "x1": 25, "y1": 5, "z_from": 0, "z_to": 5, "made_by": "t"}},
        {"study_box": {"x0": 5, "y0": 0, "x1": 5, "y1": 5, "z_from": 0, "z_to": 5, "made_by": "t"}},
    ],
)
def test_a_record_that_makes_no_sense_is_refused(change):
    with pytest.raises(ValidationError):
        record(**change)
