"""Shards: several chunks a file, as Zarr's sharding codec has it, and read by range."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import obstore.store
import pytest
import xarray
import zarr
from file_server import file_server
from golden import GOLDEN
from kept import write_cache
from made_studies import files_of, make_study
from zarr.storage import LocalStore, ObjectStore

from cache_schema import Cache, CacheWriter
from cache_schema.errors import CacheError, UsageError
from cache_schema.store import read_study_document
from cache_schema.verify import verify

SLICES, LARGE = 150, {"rows": 64, "columns": 64}
"""three shards of 64 slices, the last one not full"""


def write_long(path: str | Path, shard: int | None = 64) -> None:
    writer = CacheWriter(path, shard)
    writer.publish(make_study("1.2.3", SLICES, **LARGE))
    writer.finish()


@pytest.fixture
def cache(tmp_path):
    write_long(tmp_path / "cache")
    return tmp_path / "cache"


def as_zarr_reads_it(group: zarr.Group) -> None:
    expected = make_study("1.2.3", SLICES, **LARGE)
    assert group["pixels"].shards == (64, 64, 64) and group["pixels"].chunks == (8, 64, 64)
    assert np.array_equal(group["pixels"][...], expected.pixels.array)
    assert np.array_equal(group["pixels"][60:70, 3:9], expected.pixels.array[60:70, 3:9])
    assert np.array_equal(group["z"][...], expected.z) and np.array_equal(group["slice_box"][...], expected.slice_box)


def test_zarr_and_xarray_read_the_shards_of_a_folder(cache):
    assert verify(cache) == []
    as_zarr_reads_it(zarr.open_group(LocalStore(cache / "1.2.3"), mode="r"))
    alone = zarr.open_array(LocalStore(cache / "1.2.3" / "pixels"), mode="r")
    assert np.array_equal(alone[140:], make_study("1.2.3", SLICES, **LARGE).pixels.array[140:])
    found = xarray.open_zarr(cache / "1.2.3", consolidated=False)
    assert np.array_equal(found["pixels"].values, make_study("1.2.3", SLICES, **LARGE).pixels.array)


def test_zarr_and_xarray_read_the_shards_of_a_store(s3):
    write_long("s3://bucket/shards")
    assert verify("s3://bucket/shards") == []
    options = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "client_options": {"allow_http": True}}
    store = ObjectStore(obstore.store.from_url("s3://bucket/shards", **options), read_only=True)
    as_zarr_reads_it(zarr.open_group(store, path="1.2.3", mode="r"))
    found = xarray.open_zarr(store, group="1.2.3", consolidated=False)
    assert np.array_equal(found["pixels"].sel(z=slice(27, 24)), make_study("1.2.3", SLICES, **LARGE).pixels.array[2:5])


def test_a_shard_has_the_bytes_that_zarr_itself_would_write(cache, tmp_path):
    """Chunk by chunk: zarr may order the chunks of a shard otherwise."""
    stored = zarr.open_array(LocalStore(cache / "1.2.3" / "pixels"), mode="r")
    (tmp_path / "again").mkdir()
    shutil.copy(cache / "1.2.3/pixels/zarr.json", tmp_path / "again/zarr.json")
    again = zarr.open_array(LocalStore(tmp_path / "again"), mode="r+")
    again.with_config({"write_empty_chunks": True})[...] = stored[...]
    for name in ("c.0.0.0", "c.1.0.0", "c.2.0.0"):
        ours, theirs = (folder / name for folder in (cache / "1.2.3/pixels", tmp_path / "again"))
        assert chunks_by_index(ours.read_bytes()) == chunks_by_index(theirs.read_bytes())
        assert ours.stat().st_size == theirs.stat().st_size
    assert files_of(cache / "1.2.3/pixels")["zarr.json"] == files_of(tmp_path / "again")["zarr.json"]


def chunks_by_index(shard: bytes) -> list[bytes]:
    index = np.frombuffer(shard[-(8 * 16 + 4) : -4], "<u8").reshape(8, 2)
    return [shard[start : start + size] for start, size in index.tolist() if start != 2**64 - 1]


def test_shards_change_no_digest_and_need_fewer_files(cache, tmp_path):
    write_long(tmp_path / "plain", None)
    plain, sharded = Cache(tmp_path / "plain"), Cache(cache)
    assert plain.record("1.2.3") == sharded.record("1.2.3") and plain.pixel_hash == sharded.pixel_hash
    columns = ["id", "content_digest", "segmentation_digest", "slices"]
    assert plain.index[columns].equals(sharded.index[columns])
    counts = [len(files_of(folder / "1.2.3" / "pixels")) for folder in (tmp_path / "plain", cache)]
    assert counts == [20, 4]


def test_a_cache_is_copied_from_shards_to_chunks_and_back_to_the_same_bytes(cache, tmp_path):
    for name, shard, source in (("plain", None, cache), ("again", 64, tmp_path / "plain")):
        writer = CacheWriter(tmp_path / name, shard)
        writer.publish(Cache(source).study("1.2.3"))
        writer.finish()
    assert files_of(tmp_path / "again") == files_of(cache)


def test_a_window_of_a_shard_is_read_by_one_range(cache):
    with file_server(cache) as site:
        study = Cache(site.address).study("1.2.3")
        site.requests.clear()
        assert np.array_equal(study.read(16, 40), make_study("1.2.3", SLICES, **LARGE).pixels.array[16:40])
        shard = (cache / "1.2.3/pixels/c.0.0.0").stat().st_size
        assert [path for _, path, _ in site.requests] == ["/1.2.3/pixels/c.0.0.0"], "neighbours by one request"
        assert site.bytes_read == sum(
            size for size, _ in read_study_document(cache / "1.2.3")[1]["files"]["pixels/c.0.0.0"]["chunks"][2:5]
        )
        assert site.bytes_read < shard / 2
        site.requests.clear()
        study.read(60, 70)
        assert sorted(path for _, path, _ in site.requests) == [f"/1.2.3/pixels/c.{n}.0.0" for n in (0, 1)]


def test_a_damaged_chunk_inside_a_shard_is_named_and_its_neighbours_are_read(cache):
    path = cache / "1.2.3/pixels/c.1.0.0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    study = Cache(cache).study("1.2.3")
    assert study.read(72, 128).shape == (56, 64, 64) and study.read(0, 64).shape[0] == 64
    with pytest.raises(CacheError, match=r"1\.2\.3: pixels/c\.1\.0\.0 does not check"):
        study.read(64, 72)
    assert verify(cache) == ["1.2.3: pixels/c.1.0.0 changed"]


def test_chunks_of_a_shard_that_changed_places_are_no_other_slices(cache):
    path = cache / "1.2.3/pixels/c.0.0.0"
    sizes = [size for size, _ in read_study_document(cache / "1.2.3")[1]["files"]["pixels/c.0.0.0"]["chunks"]]
    same = [n for n in range(1, 8) if sizes[n] == sizes[0]]
    data = bytearray(path.read_bytes())
    start = sum(sizes[: same[0]])
    data[: sizes[0]] = data[start : start + sizes[0]]
    path.write_bytes(data)
    with pytest.raises(CacheError, match=r"is not the one that the study's zarr\.json lists"):
        Cache(cache).read("1.2.3", 0, 8)
    assert verify(cache) == ["1.2.3: pixels/c.0.0.0 changed"]


def test_a_cut_shard_and_a_damaged_index_of_one_are_named(cache):
    path = cache / "1.2.3/pixels/c.2.0.0"
    data = path.read_bytes()
    path.write_bytes(data[:-200])
    assert any("1.2.3: pixels/c.2.0.0 has" in line for line in verify(cache))
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(CacheError, match=r"1\.2\.3: pixels/c\.2\.0\.0 does not check"):
        Cache(cache).read("1.2.3", 128, 150)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert verify(cache) == ["1.2.3: pixels/c.2.0.0 changed"], "zarr reads by the index"


def test_another_shard_than_that_of_the_cache_is_one_line(cache, tmp_path):
    write_long(tmp_path / "plain", None)
    for path, shard, words in (
        (cache, 32, "a cache with shards of 64 slices"),
        (tmp_path / "plain", 64, "a cache with no shards"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            CacheWriter(path, shard)
        assert "\n" not in str(error.value)
    for shard in (0, 4, 12, -8):
        with pytest.raises(UsageError, match="multiple of 8"):
            CacheWriter(tmp_path / "new", shard)
    assert CacheWriter(cache).shard == 64 and CacheWriter(tmp_path / "plain").shard is None


def test_both_schemas_are_read_and_one_shard_that_holds_all_is_right(tmp_path):
    assert Cache(GOLDEN).attributes["schema_version"] == 1
    for shard, version in ((None, 1), (8, 2), (1024, 2)):
        path = tmp_path / str(shard)
        write_cache(path, shard)
        assert Cache(path).attributes["schema_version"] == version and verify(path) == []
        assert np.array_equal(Cache(path).read("1.2.3", 3, 19), make_study("1.2.3").pixels.array[3:])
        assert np.array_equal(
            zarr.open_group(path / "1.2.3", mode="r")["pixels"][...], make_study("1.2.3").pixels.array
        )


def test_a_study_that_is_published_anew_is_told_from_the_one_before(cache):
    study = Cache(cache).study("1.2.3")
    CacheWriter(cache).publish(make_study("1.2.3", SLICES, seed=1, **LARGE))
    for asked in (partial(study.read, 0, 1), partial(study.read, 60, 70), study.check_fresh):
        with pytest.raises(Exception, match=r"1\.2\.3: was replaced"):
            asked()
