"""A store that fails, delays and cuts, and writers that know nothing of each other: all ends well, and nothing wrong is ever read."""

import random
from multiprocessing import get_context

import numpy as np
import pytest
from faulty_proxy import SOME_OF_EACH, Faults, faulty_proxy
from kept import write_cache
from made_studies import make_study
from s3_server import environment

from cache_schema import Cache, CacheWriter
from cache_schema.local_copy import LocalCopy
from cache_schema.stores import StoreError
from cache_schema.verify import verify


def local_objects(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_body_that_ends_early_is_asked_for_again(s3):
    write_cache("s3://bucket/cut")
    with faulty_proxy(s3.endpoint, Faults(cut=0.4, seed=2)) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        assert np.array_equal(Cache("s3://bucket/cut").read("1.2.3", 0, 19), make_study("1.2.3").pixels.array)
        assert proxy.injected["cut"]


def test_a_store_that_fails_for_good_is_one_line(s3):
    with faulty_proxy(s3.endpoint, Faults(failed=1)) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        with pytest.raises(StoreError, match=r"s3://bucket: the store does not answer \(status 503\)") as error:
            Cache("s3://bucket/broken")
        assert "\n" not in str(error.value)


def read_windows(found: Cache, count: int) -> None:
    """Random windows of all studies, some of them cropped, each compared with what was published."""
    chance, studies = (
        random.Random(0),
        {id: (found.study(id), make_study(id, 60, seed=int(id[-1]))) for id in found.ids},
    )
    for _ in range(count):
        study, expected = studies[chance.choice(found.ids)]
        z0 = chance.randrange(50)
        z1 = chance.randrange(z0 + 1, 61)
        box = chance.choice([None, (3, 2, 20, 17)])
        assert np.array_equal(study.read(z0, z1, box), expected.read(z0, z1, box))


@pytest.mark.check
@pytest.mark.parametrize("shard", [None, 32])
def test_with_requests_that_fail_wait_or_are_cut_a_cache_is_written_and_read_right(s3, tmp_path, shard):
    ids, folder = [f"1.2.{n}" for n in range(4)], tmp_path / "local"
    with faulty_proxy(s3.endpoint, SOME_OF_EACH) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        address = f"s3://bucket/faults-{shard}"
        for place in (address, folder):
            writer = CacheWriter(place, shard)
            for id in ids:
                writer.publish(make_study(id, 60, seed=int(id[-1])))
            writer.finish()
        assert s3.objects(f"faults-{shard}/") == local_objects(folder)
        read_windows(Cache(address), 100)
        read_windows(Cache(address, LocalCopy(tmp_path / "copy", 1 << 30)), 100)
        assert verify(address) == [] and all(proxy.injected.values())


def write_some(address: str, numbers: list[int], twice: bool) -> None:
    writer = CacheWriter(address)
    for number in numbers * (1 + twice):
        writer.publish(make_study(f"1.2.{number}", 20, seed=number))
    writer.finish()


@pytest.mark.check
@pytest.mark.parametrize("twice", [False, True])
def test_two_writers_at_once_lose_nothing(s3, tmp_path, twice):
    """Each begins the cache, has studies of its own, and some that the other writes too, at the same time."""
    address = f"s3://bucket/two-{twice}"
    ours, theirs = [0, 1, 2, 3, 4], [4, 3, 2, 5, 6]
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(write_some, [(address, ours, twice), (address, theirs, twice)], chunksize=1)
    write_some(tmp_path / "local", sorted({*ours, *theirs}), False)
    assert s3.objects(f"two-{twice}/") == local_objects(tmp_path / "local") and verify(address) == []


def test_a_writer_that_was_killed_half_way_is_gone_on_from(s3, tmp_path):
    """What it left has no record: it is no study, and the next writer of that study writes over it."""
    write_cache("s3://bucket/killed")
    client, name = s3.client(), "killed/1.2.3/"
    client.delete_object(Bucket=s3.bucket, Key=f"{name}zarr.json")
    client.put_object(Bucket=s3.bucket, Key=f"{name}pixels/c.1.0.0", Body=b"torn")
    client.put_object(Bucket=s3.bucket, Key=f"{name}pixels/c.9.0.0", Body=b"of a longer one")
    CacheWriter("s3://bucket/killed").finish()
    assert Cache("s3://bucket/killed").ids == ["1.2.4"]
    write_cache("s3://bucket/killed")
    write_cache(tmp_path / "local")
    assert s3.objects("killed/") == local_objects(tmp_path / "local") and verify("s3://bucket/killed") == []
