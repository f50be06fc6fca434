"""One series that holds two volumes: one of them whole, or neither; and sound series that only look odd are kept."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import STUDY, expected_grey, grey, picture, plan_one, write_series, write_slice
from volumes import MARKS, loses, mixes, write_mixture

from preprocess.series.interleaving import alternates, is_regular
from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def two_volumes(folder, mark, *, offset=0.0, slices=12):
    """Two volumes in one series, files in turn; pictures of the second begin at 50."""
    for volume in (0, 1):
        for k in range(slices):
            fields = {"folder": "s", "x": -8.0} | MARKS[mark](volume, k)
            place = [fields.pop("x"), -6.0, 100.0 - 2 * k - offset * volume]
            path = folder / fields.pop("folder") / f"{2 * k + volume:03d}.dcm"
            write_slice(path, picture(50 * volume + k), number=k + 1, ImagePositionPatient=place, **fields)
    return folder


TOLD_APART = sorted(MARKS.keys() - {"nothing", "patient"})


@pytest.mark.parametrize("offset", [0.0, 0.74, 1.0])
@pytest.mark.parametrize("mark", TOLD_APART)
def test_what_tells_two_volumes_apart_leaves_one_of_them_whole(tmp_path, mark, offset):
    plans, findings = plan_studies(two_volumes(tmp_path, mark, offset=offset))
    first = {"kernel": 50}.get(mark, 0)  # the sharper kernel is the second's
    assert np.array_equal(grey(plans[0]), expected_grey(np.stack([picture(first + k) for k in range(12)])))
    (left,) = [f for f in findings if f.reason == "series_left_out"]
    assert left.message.startswith("12 images: ") and not [f for f in findings if f.severity == "repaired"]


@pytest.mark.parametrize(("offset", "reason"), [(0.0, "too_many_repeats"), (0.74, "two_volumes")])
def test_where_nothing_tells_them_apart_the_study_is_refused(tmp_path, offset, reason):
    assert plan_one(two_volumes(tmp_path, "nothing", offset=offset)) == (None, {reason: "refused"})


def test_a_mixture_beside_a_whole_series_is_left_out(tmp_path):
    two_volumes(tmp_path / "mixed", "nothing")
    write_series(tmp_path / "whole", 12, series="2", SliceThickness="3")
    plans, findings = plan_studies(tmp_path)
    assert plans[0].series_uid == f"{STUDY}.2"
    assert [f.message for f in findings] == ["24 images: not a whole volume, or several that no header field separates"]


def test_two_keys_together_may_tell_four_volumes_apart(tmp_path):
    for volume in range(4):
        fields = {"KVP": str(80 + 60 * (volume % 2)), "TemporalPositionIdentifier": str(1 + volume // 2)}
        for k in range(10):
            hu = picture(20 * volume + k)
            write_slice(tmp_path / f"{4 * k + volume}.dcm", hu, z=100.0 - 2 * k, number=k + 1, **fields)
    plans, findings = plan_studies(tmp_path)
    assert np.array_equal(grey(plans[0]), expected_grey(np.stack([picture(k) for k in range(10)])))
    assert [f.reason for f in findings] == 3 * ["series_left_out"]


def test_a_key_whose_values_follow_one_another_parts_nothing(tmp_path):
    for k in range(12):
        fields = {"AcquisitionNumber": str(1 + k // 4), "KVP": "120" if k < 6 else "100", "SeriesNumber": str(k // 6)}
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=100.0 - 2 * k, number=k + 1, **fields)
    plan, found = plan_one(tmp_path)
    assert found == {} and len(plan.slices) == 12


def test_a_lossless_volume_is_kept_and_its_lossy_twin_listed(tmp_path):
    from pydicom import uid

    for k in range(6):
        hu = picture(k)
        write_slice(tmp_path / f"b{k}.dcm", hu, z=100.0 - 2 * k, number=k + 1, syntax=uid.JPEGLSLossless)
        twin = write_slice(tmp_path / f"a{k}.dcm", hu + 2, z=100.0 - 2 * k, number=k + 21, syntax=uid.JPEGLSLossless)
        twin.write_bytes(twin.read_bytes().replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.81"))
    plans, findings = plan_studies(tmp_path)
    assert np.array_equal(grey(plans[0]), expected_grey(np.stack([picture(k) for k in range(6)])))
    assert [f.message for f in findings] == ["6 images: lossy compression"]


def test_of_files_that_are_there_twice_those_of_one_series_stay(tmp_path):
    """Names order copies at random, so the first by name would be half of each."""
    for k in range(10):
        for copy in (0, 1):
            name = f"{(7 * k + 5 * copy) % 20:02d}-{copy}.dcm"
            fields = {"AcquisitionTime": f"1012{30 * copy:02d}", "SeriesNumber": str(3 + copy)}
            write_slice(tmp_path / f"folder {copy}" / name, picture(k), z=100.0 - 2 * k, number=k + 1, **fields)
    plans, findings = plan_studies(tmp_path)
    assert {place.path.split("/")[-2] for place in plans[0].slices} == {"folder 0"}
    assert len(plans[0].slices) == 10 and [f.reason for f in findings] == ["repeated_file"]


def test_combs_in_each_other_alternate_and_gaps_do_not():
    comb = 2.0 * np.arange(20)
    about = {"on_grid": False, "in_order": False}
    assert alternates(np.concatenate([comb, comb + 0.7]), **about)
    assert alternates(np.concatenate([comb, comb[4:] + 2 / 3]), **about)
    assert not alternates(np.concatenate([comb, comb + 1.0]), **about)  # as half the step
    assert not alternates(np.delete(comb, [3, 5, 7, 12]), **about)
    assert not alternates(np.concatenate([comb, comb[-1] + 5.0 * np.arange(1, 9)]), **about)
    assert not alternates(np.round(12.34 + 0.625 * np.arange(40), 1), on_grid=True, in_order=False)
    assert (
        is_regular(comb)
        and is_regular(np.delete(comb, [7, 12]))
        and is_regular(np.concatenate([comb, 40 + 5.0 * np.arange(1, 9)]))
    )
    assert not is_regular(comb[[0, 1, 3, 4, 7, 9, 10, 12, 15, 16, 18]])


def scan(folder, *, first, start, groups, z0, step, times):
    """A scan in groups of slices that share AcquisitionNumber and AcquisitionTime; times: seconds of the first group."""
    for k in range(groups * 4):
        time = times + k // 4
        fields = {"AcquisitionNumber": str(first + k // 4), "AcquisitionTime": f"10{time // 60:02d}{time % 60:02d}"}
        path = folder / f"{start + k}.dcm"
        write_slice(path, picture(start + k), z=z0 + step * k, number=start + k, **fields)


def volumes_kept(plan):
    """By file numbers below and from 500 on."""
    return {int(Path(place.path).stem) >= 500 for place in plan.slices}, len(plan.slices)


@pytest.mark.parametrize(("z0", "step"), [(1.0, 2.0), (0.0, 2.0), (99.0, -2.0), (120.0, -2.0)])
def test_two_scans_in_groups_are_parted_where_the_second_begins(tmp_path, z0, step):
    scan(tmp_path, first=1, start=1, groups=10, z0=0.0, step=2.0, times=0)
    scan(tmp_path, first=11, start=500, groups=10, z0=z0, step=step, times=300)
    plan, found = plan_one(tmp_path)
    assert volumes_kept(plan)[1] == 40 and len(volumes_kept(plan)[0]) == 1 and found["series_left_out"] == "flagged"


def test_slices_of_a_second_phase_that_make_no_row_are_seen(tmp_path):
    for k in range(40):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=2.0 * k, number=k + 1, KVP="80")
    for k in (3, 4, 9, 17, 18, 19, 30):
        write_slice(tmp_path / f"{500 + k}.dcm", picture(60 + k), z=2.0 * k + 1, number=60 + k, KVP="140")
    assert volumes_kept(plan_one(tmp_path)[0]) == ({False}, 40)


def test_phases_that_change_their_spacing_together_are_seen(tmp_path):
    heights = np.concatenate([2.0 * np.arange(20), 38 + 5.0 * np.arange(1, 15)])
    for phase in (0, 1):
        for k, z in enumerate(heights):
            fields = {"z": z + phase, "number": k + 1, "KVP": ("80", "140")[phase]}
            write_slice(tmp_path / f"{500 * phase + k}.dcm", picture(40 * phase + k), **fields)
    kept, count = volumes_kept(plan_one(tmp_path)[0])
    assert len(kept) == 1 and count == len(heights)


def test_a_bolus_that_is_watched_at_one_place_is_left_out(tmp_path):
    write_series(tmp_path, 30, AcquisitionNumber="2")
    for k in range(12):
        write_slice(tmp_path / f"{500 + k}.dcm", picture(40 + k), z=80.0, number=500 + k, AcquisitionNumber="1")
    plan, found = plan_one(tmp_path)
    assert volumes_kept(plan) == ({False}, 30) and found == {"series_left_out": "flagged"}


@pytest.mark.parametrize(
    "deal", [lambda k: {"folder": f"part {k % 2}"}, lambda k: {"ContentTime": f"10{12 + k % 2}00"}]
)
def test_thin_slices_dealt_in_turn_are_one_volume(tmp_path, deal):
    """Numbered in order, and too thin to make two volumes that have no holes."""
    for k in range(20):
        fields = {"folder": "s"} | deal(k)
        path = tmp_path / fields.pop("folder") / f"{k}.dcm"
        write_slice(path, picture(k), z=100.0 - k, number=k + 1, SliceThickness="1", **fields)
    plan, found = plan_one(tmp_path)
    assert found == {} and len(plan.slices) == 20


def test_volumes_that_share_empty_slices_lose_none(tmp_path):
    empty = np.full_like(picture(), -1000)
    for phase, voltage in enumerate(("80", "140")):
        for k in range(20):
            hu = empty if k < 4 else picture(30 * phase + k)
            path = tmp_path / f"{500 * phase + k}.dcm"
            write_slice(path, hu, z=100.0 - 2 * k, number=k + 1, KVP=voltage, SliceThickness=str(2 - phase))
    kept, count = volumes_kept(plan_one(tmp_path)[0])
    assert kept == {True} and count == 20


@pytest.mark.parametrize("lost", [range(6, 12), (3, 7)])
def test_images_that_have_lost_their_frame_of_reference_stay_with_the_others(tmp_path, lost):
    for k in range(12):
        fields = {} if k in lost else {"FrameOfReferenceUID": "1.2.3"}
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=100.0 - 2 * k, number=k + 1, **fields)
    plan, found = plan_one(tmp_path)
    assert len(plan.slices) == 12 and found == {}


@pytest.mark.parametrize("offset", [0.0, 0.7, 1.0])
def test_a_volume_without_frame_of_reference_beside_one_that_has_it_is_another(tmp_path, offset):
    write_series(tmp_path / "a", 12, FrameOfReferenceUID="1.2.3")
    for k in range(12):
        write_slice(tmp_path / f"{500 + k}.dcm", picture(50 + k), z=100.0 - 2 * k - offset, number=k + 1)
    kept, count = volumes_kept(plan_one(tmp_path)[0])
    assert len(kept) == 1 and count == 12


def test_images_with_a_series_uid_of_their_own_each_are_one_series(tmp_path):
    for k in range(8):
        write_slice(tmp_path / f"{k}.dcm", picture(k), z=100.0 - 2 * k, number=k + 1, SeriesInstanceUID=f"1.2.3.{k}")
    plan, found = plan_one(tmp_path)
    assert (
        len(plan.slices) == 8
        and plan.series_uid == ""
        and found == {"series_uid_of_each": "flagged", "invalid_uid": "flagged"}
    )


@pytest.mark.parametrize("seed", range(20))
def test_random_mixtures_never_give_slices_of_both(tmp_path, seed):
    assert mixes(tmp_path, seed) is None


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_random_sound_series_are_kept_whole_and_in_order(tmp_path, seed):
    assert loses(tmp_path, seed) is None


@pytest.mark.check
def test_of_two_hundred_mixtures_and_sound_series_none_is_misjudged(tmp_path):
    wrong = [mixes(tmp_path / str(seed), seed) for seed in range(100, 300)]
    wrong += [loses(tmp_path / str(seed), seed) for seed in range(1100, 1300)]
    assert [line for line in wrong if line] == []


def test_the_generator_of_mixtures_makes_what_it_says(tmp_path):
    mark, volumes, sizes = write_mixture(tmp_path, 3)
    assert mark in MARKS and sorted(volumes.values()) == [0] * sizes[0] + [1] * sizes[1]
    assert sorted(map(str, tmp_path.rglob("*.dcm"))) == sorted(volumes)
