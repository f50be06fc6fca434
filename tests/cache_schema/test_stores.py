"""Caches in stores: the same bytes as in a folder, read and changed by the same code, and no wrong pixel."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
from file_server import file_server
from kept import IDS, LISTED, SERVED, kept, write_cache
from made_studies import make_study
from s3_server import environment

from cache_schema import Cache, CacheWriter
from cache_schema.errors import CacheError, StaleStudy, UsageError
from cache_schema.layout import GROUP
from cache_schema.store import ChangedStudy
from cache_schema.store_path import place_of
from cache_schema.stores import StoreError
from cache_schema.verify import verify

BOX = {"x0": 1, "y0": 2, "x1": 20, "y1": 19, "z_from": 3, "z_to": 19}
SLOW = pytest.mark.check
ARRAYS = ("z", "slice_number", "value_range", "slice_box", "vertebra_ratio")


@pytest.fixture
def open_kept(request, tmp_path, monkeypatch):
    """kind, shard -> a cache there. The S3 server is started where it is asked for."""
    with ExitStack() as stack:

        def opened(kind, shard=None):
            server = request.getfixturevalue("s3") if kind == "s3" else None
            folder = tmp_path / kind
            folder.mkdir()
            return stack.enter_context(kept(kind, folder, server, shard))

        yield opened


def objects_below(address) -> dict[str, bytes]:
    """All files of a store but those in .build."""
    root = place_of(address)
    return {name: (root / name).read_bytes() for name in root.sizes() if not name.startswith(".build")}


def local_files(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("shard", [None, 16])
@pytest.mark.parametrize("kind", LISTED)
def test_a_cache_in_a_store_has_the_bytes_of_one_in_a_folder(open_kept, tmp_path, kind, shard, request):
    write_cache(tmp_path / "local", shard)
    expected, address = local_files(tmp_path / "local"), open_kept(kind, shard).address
    assert objects_below(address) == expected
    if kind == "s3":
        server = request.getfixturevalue("s3")
        assert server.objects(address.removeprefix(f"s3://{server.bucket}/") + "/") == expected, "by boto3 too"


@pytest.mark.parametrize("kind", [*LISTED, *SERVED])
def test_what_a_store_gives_is_what_was_published(open_kept, kind):
    found, expected = Cache(open_kept(kind).address), make_study("1.2.3")
    assert found.ids == IDS and found.labels["fold"].tolist() == [0, 1]
    study = found.study("1.2.3")
    for name in ARRAYS:
        assert np.array_equal(getattr(study, name), getattr(expected, name)), name
    assert np.array_equal(study.read(0, 19), expected.pixels.array)
    assert np.array_equal(study.read(7, 17, (3, 4, 11, 20)), expected.pixels.array[7:17, 4:20, 3:11])
    assert found.study("1.2.4").slice_box is None and found.record("1.2.3") == study.record
    assert verify(found.path) == [] and verify(found.path, sample=0) == []
    study.check_fresh()
    found.require_unchanged("1.2.3")
    with pytest.raises(UsageError, match=r"no study 1\.2\.5.*did you mean"):
        found.study("1.2.5")


@pytest.mark.parametrize("kind", ["s3", "zip"])
def test_a_reader_travels_to_another_process(open_kept, kind):
    found, expected = Cache(open_kept(kind).address), make_study("1.2.3").pixels.array
    study = found.study("1.2.3")
    study.read(0, 3)
    with get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(found.read, ("1.2.3", 2, 11)), expected[2:11])
        assert np.array_equal(pool.apply(study.read, (2, 11)), expected[2:11])


@pytest.mark.parametrize("kind", ["memory", "zip"])
def test_a_forked_process_reads_what_is_in_this_one(open_kept, kind):
    found, expected = Cache(open_kept(kind).address), make_study("1.2.3").pixels.array
    found.read("1.2.3", 0, 3)
    with get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply(found.read, ("1.2.3", 2, 11)), expected[2:11])


def reads(found) -> str:
    try:
        return str(found.read("1.2.3", 0, 3).shape)
    except UsageError as error:
        return str(error)


def test_a_fork_of_a_process_that_used_a_store_over_the_network_is_told_and_does_not_hang(open_kept):
    """What is behind the store runs threads, which no fork has."""
    found = Cache(open_kept("http").address)
    with get_context("fork").Pool(1) as pool:
        line = pool.apply_async(reads, (found,)).get(30)
    assert "forked" in line and "spawn" in line and "\n" not in line


@pytest.mark.parametrize("kind", [*LISTED, *SERVED])
def test_several_threads_read_at_once(open_kept, kind):
    found, expected = Cache(open_kept(kind).address), make_study("1.2.3").pixels.array
    study = found.study("1.2.3")
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda z: study.read(z, z + 9), list(range(10)) * 3))
    assert all(
        np.array_equal(window, expected[z : z + 9]) for window, z in zip(windows, list(range(10)) * 3, strict=True)
    )


@pytest.mark.parametrize("kind", [*LISTED, *SERVED])
def test_damage_is_named_and_never_read(open_kept, kind):
    place = open_kept(kind)
    place.flip("1.2.3/pixels/c.1.0.0")
    study = Cache(place.address).study("1.2.3")
    assert study.read(0, 8).shape == (8, 20, 24)
    with pytest.raises(CacheError, match=r"1\.2\.3: pixels/c\.1\.0\.0 does not check"):
        study.read(0, 9)
    assert verify(place.address) == ["1.2.3: pixels/c.1.0.0 changed"]
    place.flip("1.2.3/zarr.json")
    with pytest.raises(CacheError, match=r"1\.2\.3/zarr\.json"):
        Cache(place.address).study("1.2.3")


@pytest.mark.parametrize(
    ("kind", "shard"),
    [*product(["memory", "http", "zip"], [None, 16]), ("s3", 16), pytest.param("s3", None, marks=SLOW)],
)
def test_a_file_that_is_missing_or_too_short_is_named_at_once(open_kept, kind, shard):
    """The store answers well: nothing is asked again."""
    place, name = open_kept(kind, shard), "c.1.0.0"
    data = place.get(f"1.2.3/pixels/{name}")
    for kept_bytes in (len(data) // 3, 0):
        place.put(f"1.2.3/pixels/{name}", data[:kept_bytes])
        with pytest.raises(CacheError, match=r"1\.2\.3: pixels/c\.1\.0\.0 does not check"):
            Cache(place.address).read("1.2.3", 8, 19)
        assert any("1.2.3: pixels/c.1.0.0" in line for line in verify(place.address))
    place.delete(f"1.2.3/pixels/{name}")
    with pytest.raises(CacheError, match=r"1\.2\.3: pixels/c\.1\.0\.0 is missing"):
        Cache(place.address).read("1.2.3", 8, 19)
    assert any("1.2.3: pixels/c.1.0.0 is missing" in line for line in verify(place.address))


@pytest.mark.parametrize(
    ("kind", "shard"), [("memory", None), ("memory", 16), ("s3", 16), pytest.param("s3", None, marks=SLOW)]
)
def test_a_study_that_is_replaced_stops_who_holds_it_open(open_kept, kind, shard):
    address = open_kept(kind, shard).address
    for other in (make_study("1.2.3", seed=3), make_study("1.2.3", 9, seed=4), make_study("1.2.3", 40, seed=5)):
        found = Cache(address)
        study, half, before = found.study("1.2.3"), found.study("1.2.3"), found.read("1.2.3", 0, 8)
        assert np.array_equal(half.read(0, 8), before)
        CacheWriter(address).publish(other)
        reads = (
            partial(study.read, 0, 8),
            partial(half.read, 1, 9),
            study.check_fresh,
            partial(found.check_fresh, "1.2.3"),
        )
        for asked in reads:
            with pytest.raises(StaleStudy, match=r"1\.2\.3"):
                asked()
        for opened in (found.study, found.require_unchanged, Cache(address).study):
            with pytest.raises(ChangedStudy, match=r"1\.2\.3 was changed after the index"):
                opened("1.2.3")
        assert verify(address) == ["1.2.3: its row in the index is not that of its record"]
        CacheWriter(address).finish()
        assert verify(address) == [] and np.array_equal(Cache(address).read("1.2.3", 0, 9), other.read(0, 9))


@pytest.mark.parametrize("kind", LISTED)
def test_a_study_that_is_removed_is_gone_from_store_and_index(open_kept, kind):
    address = open_kept(kind).address
    found = Cache(address)
    study = found.study("1.2.3")
    CacheWriter(address).remove("1.2.3")
    CacheWriter(address).remove("1.2.3")
    assert not [name for name in place_of(address).sizes() if name.startswith("1.2.3/")]
    for asked in (study.check_fresh, lambda: study.read(0, 1)):
        with pytest.raises(StaleStudy, match=r"1\.2\.3"):
            asked()
    with pytest.raises(ChangedStudy, match=r"1\.2\.3 is in the index but not on disk"):
        found.study("1.2.3")
    CacheWriter(address).finish()
    assert Cache(address).ids == ["1.2.4"]


@pytest.mark.parametrize("kind", LISTED)
def test_boxes_are_set_and_harm_no_reader(open_kept, tmp_path, kind):
    address = open_kept(kind).address
    study = Cache(address).study("1.2.3")
    assert CacheWriter(address).set_boxes(pd.DataFrame([{"id": "1.2.3", **BOX}])) == 1
    study.check_fresh()
    assert study.read(0, 19).shape == (19, 20, 24) and verify(address) == []
    assert Cache(address).record("1.2.3").study_box.x1 == 20 and Cache(address).index["x1"].tolist() == [20, pd.NA]
    write_cache(tmp_path / "local")
    CacheWriter(tmp_path / "local").set_boxes(pd.DataFrame([{"id": "1.2.3", **BOX}]))
    assert objects_below(address) == local_files(tmp_path / "local")


@pytest.mark.parametrize("kind", SERVED)
def test_what_cannot_be_written_is_one_line(open_kept, kind):
    with pytest.raises(UsageError, match="is read-only") as error:
        CacheWriter(open_kept(kind).address)
    assert "\n" not in str(error.value)


def test_a_store_with_something_else_in_it_is_left_alone(s3):
    (place_of("s3://bucket/thesis") / "text.txt").write_bytes(b"do not touch")
    with pytest.raises(UsageError, match="neither empty nor a cache"):
        CacheWriter("s3://bucket/thesis")
    with pytest.raises(UsageError, match="is not a cache"):
        Cache("s3://bucket/thesis")
    assert list(place_of("s3://bucket/thesis").sizes()) == ["text.txt"]


def test_the_first_objects_of_another_build_are_a_caches_whichever_comes_first(s3):
    for number, first in enumerate((f"pixels/{GROUP}", "pixels/c/0/0/0", "pixels/c/7/0/0")):
        cache = place_of(f"s3://bucket/begun{number}")
        (cache / "1.2.3" / first).write_bytes(b"half")
        (cache / "1.2.4" / "notes.txt").write_bytes(b"do not touch")
        with pytest.raises(UsageError, match="neither empty nor a cache"):
            CacheWriter(str(cache))
        (cache / "1.2.4" / "notes.txt").unlink()
        CacheWriter(str(cache))


def test_https_is_read_where_its_certificate_is_trusted(tmp_path, monkeypatch):
    write_cache(tmp_path / "a cache")
    (tmp_path / "keys").mkdir()
    with file_server(tmp_path, tmp_path / "keys") as site, environment({"SSL_CERT_FILE": str(site.certificate)}):
        assert verify(f"{site.address}/a%20cache") == []
        assert site.bytes_read > 0
        with (
            environment({"SSL_CERT_FILE": None}),
            pytest.raises(StoreError, match=r"its certificate is not trusted; .* SSL_CERT_FILE"),
        ):
            Cache(f"{site.address}/a%20cache")


def test_an_object_of_many_parts_is_written_whole(s3):
    """Above some megabytes a store is given a file in parts."""
    data = np.random.default_rng(0).integers(0, 256, 13_000_000, np.uint8).tobytes()
    (place_of("s3://bucket/large") / "file").write_bytes(data)
    assert s3.objects("large/") == {"file": data}
