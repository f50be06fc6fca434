"""The copy on this machine of what was read from a store: never wrong, never larger than its budget, never in the way."""

import os
import resource
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from file_server import file_server
from kept import write_cache
from made_studies import make_study

from cache_schema import Cache, CacheWriter
from cache_schema.errors import UsageError
from cache_schema.local_copy import LocalCopy

GB = 1 << 30
ARRAYS = ("z", "slice_number", "value_range", "slice_box", "vertebra_ratio")


@pytest.fixture(params=[None, 16])
def site(tmp_path, request):
    write_cache(tmp_path / "cache", request.param)
    with file_server(tmp_path / "cache") as found:
        yield found


def read_all(address: str, copy: LocalCopy | None) -> None:
    """Opens the cache and reads everything of a study; asserts that it is right."""
    study, expected = Cache(address, copy).study("1.2.3"), make_study("1.2.3")
    assert np.array_equal(study.read(0, 19), expected.pixels.array)
    for name in ARRAYS:
        assert np.array_equal(getattr(study, name), getattr(expected, name)), name


def chunks_asked_for(site) -> list[str]:
    return [path for _, path, _ in site.requests if not path.endswith(("zarr.json", "index.parquet"))]


def kept_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_read_once_is_not_fetched_again(site, tmp_path):
    copy = LocalCopy(tmp_path / "copy", GB)
    copy.check()
    read_all(site.address, copy)
    assert chunks_asked_for(site)
    site.requests.clear()
    read_all(site.address, LocalCopy(tmp_path / "copy", GB))
    assert chunks_asked_for(site) == [], "by another reader too, in any later run"
    study = Cache(site.address, copy).study("1.2.3")
    site.requests.clear()
    study.read(0, 19)
    study.read(2, 11, (3, 4, 5, 6))
    assert site.requests == [], "nothing at all while a study is open"


def test_torn_flipped_and_empty_files_are_fetched_again(site, tmp_path):
    copy = LocalCopy(tmp_path / "copy", GB)
    read_all(site.address, copy)
    files = kept_files(tmp_path / "copy")
    whole = {path: path.read_bytes() for path in files}
    for damage in (
        lambda data: data[:7],
        lambda data: b"",
        lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
        lambda data: data[:-1],
    ):
        for path, data in whole.items():
            path.write_bytes(damage(data))
        site.requests.clear()
        read_all(site.address, copy)
        assert chunks_asked_for(site)
        assert {path: path.read_bytes() for path in kept_files(tmp_path / "copy")} == whole, "and mended"


def test_the_budget_is_kept(site, tmp_path):
    copy = LocalCopy(tmp_path / "copy", 5000)
    for _ in range(3):
        read_all(site.address, copy)
        read_all(site.address, LocalCopy(tmp_path / "copy", 5000))
    assert 0 < sum(path.stat().st_size for path in kept_files(tmp_path / "copy")) <= 5000


def test_what_nobody_has_read_for_a_day_makes_room(site, tmp_path):
    old = tmp_path / "copy" / "00" / "old"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(6000))
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    read_all(site.address, LocalCopy(tmp_path / "copy", 7000))
    assert not old.exists() and kept_files(tmp_path / "copy")


def test_a_replaced_study_has_other_names(s3, tmp_path):
    copy = LocalCopy(tmp_path / "copy", GB)
    write_cache("s3://bucket/copied")
    read_all("s3://bucket/copied", copy)
    before = set(kept_files(tmp_path / "copy"))
    writer, other = CacheWriter("s3://bucket/copied"), make_study("1.2.3", seed=3)
    writer.publish(other)
    writer.finish()
    assert np.array_equal(Cache("s3://bucket/copied", copy).read("1.2.3", 0, 19), other.pixels.array)
    assert before < set(kept_files(tmp_path / "copy"))


def read_often(address: str, folder: Path) -> int:
    for _ in range(5):
        read_all(address, LocalCopy(folder, GB))
    return len(kept_files(folder))


@pytest.mark.check
def test_processes_share_one_copy(site, tmp_path):
    with get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(read_often, [(site.address, tmp_path / "copy")] * 2)
    site.requests.clear()
    read_all(site.address, LocalCopy(tmp_path / "copy", GB))
    assert chunks_asked_for(site) == [] and counts[0] > 0
    assert not [path for path in kept_files(tmp_path / "copy") if path.suffix == ".part"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"data\.store_cache=") as error:
            LocalCopy(folder, GB).check()
        assert "\n" not in str(error.value)


def test_a_folder_that_is_lost_or_full_later_is_no_error(site, tmp_path):
    """After `check`: a file in its place refuses as a full or read-only disk does."""
    copy = LocalCopy(tmp_path / "copy", GB)
    copy.check()
    (tmp_path / "copy").rmdir()
    (tmp_path / "copy").write_text("")
    read_all(site.address, copy)
    read_all(site.address, copy)
    assert (tmp_path / "copy").read_text() == ""


def test_a_disk_that_takes_no_more_is_no_error(site, tmp_path):
    """Files of more than some bytes fail half way, as on a full disk."""
    copy, before = LocalCopy(tmp_path / "copy", GB), resource.getrlimit(resource.RLIMIT_FSIZE)
    copy.check()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        read_all(site.address, copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all(path.stat().st_size <= 300 and path.suffix != ".part" for path in kept_files(tmp_path / "copy"))


def test_a_cache_in_a_folder_needs_no_copy(tmp_path):
    write_cache(tmp_path / "cache")
    read_all(str(tmp_path / "cache"), LocalCopy(tmp_path / "copy", GB))
    assert not (tmp_path / "copy").exists()
