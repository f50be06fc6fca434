"""Caches on disk: what is written comes back, whole or not at all, and always the same bytes."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool

import numpy as np
import pandas as pd
import pytest
import xarray
import zarr
from made_studies import InMemory, files_of, make_study

from cache_schema import Cache, CacheWriter, Study, folder_changes
from cache_schema.columns import index_frame
from cache_schema.documents import canonical_json
from cache_schema.errors import CacheError, StaleStudy, UsageError
from cache_schema.layout import TARGETS
from cache_schema.tables import write_table
from cache_schema.verify import verify

BOX = {"x0": 1, "y0": 2, "x1": 20, "y1": 19, "z_from": 3, "z_to": 19}


@pytest.fixture
def cache(tmp_path):
    writer = CacheWriter(tmp_path / "cache")
    writer.publish(make_study("1.2.3"))
    writer.publish(make_study("1.2.4", 8, segmented=False, seed=1))
    writer.finish()
    return tmp_path / "cache"


def labels_for(*ids):
    return pd.DataFrame({"id": ids, **dict.fromkeys(TARGETS, 0), "fold": range(len(ids))})


def test_what_is_published_comes_back(cache):
    expected, study = make_study("1.2.3"), Cache(cache).study("1.2.3")
    for name in ("z", "slice_number", "value_range", "slice_box", "vertebra_ratio"):
        found = getattr(study, name)
        assert found.dtype == getattr(expected, name).dtype and np.array_equal(found, getattr(expected, name)), name
    assert np.array_equal(study.read(0, 19), expected.pixels.array)
    assert np.array_equal(Cache(cache).read("1.2.3", 6, 18, (3, 1, 20, 17)), expected.pixels.array[6:18, 1:17, 3:20])
    unsegmented = Cache(cache).study("1.2.4")
    assert unsegmented.slice_box is None and unsegmented.vertebra_ratio is None
    assert unsegmented.record.segmentation_digest is None


def test_the_index_has_a_row_a_study_and_no_study_is_opened_for_it(cache):
    os.remove(cache / "1.2.4" / "zarr.json")
    found = Cache(cache)
    assert found.ids == ["1.2.3", "1.2.4"] and found.index["slices"].tolist() == [19, 8]
    assert found.index["segmentation_digest"].notna().tolist() == [True, False]
    assert found.index["content_digest"][0] == found.record("1.2.3").content_digest


def test_an_opened_study_travels_to_other_processes(cache):
    study = Cache(cache).study("1.2.3")
    study.read(0, 3)
    with get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply(study.read, (2, 9)), study.read(2, 9))
    assert np.array_equal(
        pickle.loads(pickle.dumps(Cache(cache))).read("1.2.4", 0, 1), Cache(cache).read("1.2.4", 0, 1)
    )


def test_the_same_studies_give_the_same_bytes_in_any_order(tmp_path, cache):
    again = CacheWriter(tmp_path / "again")
    again.publish(make_study("1.2.4", 8, segmented=False, seed=1))
    again.publish(make_study("1.2.3", seed=5))
    again.publish(make_study("1.2.3"))
    again.finish()
    assert files_of(cache) == files_of(tmp_path / "again")


def test_a_copy_of_a_cache_has_the_same_digests(tmp_path, cache):
    copy = CacheWriter(tmp_path / "copy")
    for id in Cache(cache).ids:
        copy.publish(Cache(cache).study(id))
    copy.finish()
    assert files_of(cache) == files_of(tmp_path / "copy")


def test_every_document_is_in_the_one_canonical_form(cache):
    for path in cache.rglob("zarr.json"):
        assert path.read_bytes() == canonical_json(json.loads(path.read_bytes())), path


def test_a_study_opens_in_xarray_with_named_dimensions(cache):
    found = xarray.open_zarr(cache / "1.2.3", consolidated=False)
    expected = make_study("1.2.3")
    assert found["pixels"].dims == ("z", "y", "x") and found["pixels"].dtype == np.uint8
    assert found["slice_box"].dims == ("z", "bound") and found["vertebra_ratio"].dims == ("z", "level")
    assert found["pixels"].attrs["window"] == {"low": -500, "high": 1300, "unit": "HU"}
    assert np.array_equal(found["pixels"].sel(z=slice(27, 24)), expected.pixels.array[2:5])


def test_pixels_lie_in_chunks_of_eight_whole_slices_black_ones_too(cache):
    assert sorted(p.name for p in (cache / "1.2.3" / "pixels").iterdir()) == [
        "c.0.0.0",
        "c.1.0.0",
        "c.2.0.0",
        "zarr.json",
    ]
    black = make_study("5", 8, seed=2)
    black.pixels.array[:] = 0
    writer = CacheWriter(cache)
    writer.publish(black)
    writer.finish()
    assert (cache / "5" / "pixels" / "c.0.0.0").stat().st_size > 0 and not Cache(cache).read("5", 0, 8).any()


def test_the_files_of_every_array_are_those_that_zarr_itself_would_write(cache, tmp_path):
    for folder in (cache / "1.2.3").iterdir():
        if not folder.is_dir():
            continue
        stored = zarr.open_array(zarr.storage.LocalStore(folder), mode="r")
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("c.*"))
        again = zarr.open_array(zarr.storage.LocalStore(tmp_path / folder.name), mode="r+")
        again.with_config({"write_empty_chunks": True})[...] = stored[...]
        assert files_of(tmp_path / folder.name) == files_of(folder), folder.name


def test_a_missing_chunk_is_an_error_and_not_black_slices(cache):
    os.remove(cache / "1.2.3" / "pixels" / "c.1.0.0")
    study = Cache(cache).study("1.2.3")
    assert study.read(0, 8).shape == (8, 20, 24)
    with pytest.raises(CacheError, match=r"c\.1\.0\.0 is missing"):
        study.read(0, 9)


@pytest.mark.parametrize("file", ["pixels/c.1.0.0", "z/c.0", "zarr.json", "pixels/zarr.json"])
def test_a_flipped_bit_is_never_read_in_silence(cache, file):
    path = cache / "1.2.3" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CacheError):
        study = Cache(cache).study("1.2.3")
        assert study.read(0, 19).shape == (19, 20, 24) and len(study.z) == 19
        raise CacheError("metadata is for verify") if verify(cache) else AssertionError("nothing seen")


def test_a_reader_of_a_replaced_study_is_told(cache):
    study = Cache(cache).study("1.2.3")
    study.check_fresh()
    CacheWriter(cache).publish(make_study("1.2.3"))
    study.check_fresh()
    CacheWriter(cache).publish(make_study("1.2.3", seed=3))
    with pytest.raises(StaleStudy, match=r"1\.2\.3"):
        study.check_fresh()
    CacheWriter(cache).remove("1.2.4")
    with pytest.raises(CacheError, match="in the index but not on disk"):
        Cache(cache).study("1.2.4")


def test_another_segmentation_makes_a_study_stale_but_keeps_its_content_digest(cache):
    study = Cache(cache).study("1.2.3")
    CacheWriter(cache).publish(make_study("1.2.3", segmented=False))
    CacheWriter(cache).finish()
    assert Cache(cache).record("1.2.3").content_digest == study.record.content_digest
    with pytest.raises(StaleStudy):
        study.check_fresh()


class Breaks(InMemory):
    def read(self, z0, z1, box=None):
        if z1 > 8:
            raise OSError("the disk is gone")
        return super().read(z0, z1, box)


def test_a_study_that_fails_half_way_leaves_the_cache_as_it_was(cache):
    before, study = files_of(cache), make_study("1.2.3", seed=9)
    broken = Study(study.record, study.z, study.slice_number, Breaks(study.pixels.array))
    with pytest.raises(OSError):
        CacheWriter(cache).publish(broken)
    assert files_of(cache) == before and not list((cache / ".build" / "new").iterdir())


class Dies(InMemory):
    def read(self, z0, z1, box=None):
        if z1 > 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(z0, z1, box)


def test_a_killed_writer_leaves_no_visible_study(cache):
    before, study = files_of(cache), make_study("7.7")
    dying = Study(study.record, study.z, study.slice_number, Dies(study.pixels.array))
    process = get_context("fork").Process(target=CacheWriter(cache).publish, args=(dying,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert files_of(cache) == before and list((cache / ".build" / "new").iterdir())
    CacheWriter(cache).sweep()
    assert not (cache / ".build" / "new").exists() and verify(cache) == []


def test_a_study_taken_out_by_a_killed_replacement_comes_back(cache):
    (cache / ".build" / "old").mkdir(exist_ok=True)
    os.rename(cache / "1.2.3", cache / ".build" / "old" / "1.2.3-0123456789ab")
    CacheWriter(cache).sweep()
    assert verify(cache) == []


def publish_often(path, seed):
    for _ in range(6):
        CacheWriter(path).publish(make_study("1.2.3", seed=seed))


def test_two_writers_of_one_study_end_with_one_of_theirs_whole(cache):
    with ThreadPool(2) as pool:
        pool.starmap(publish_often, [(cache, 1), (cache, 2)])
    CacheWriter(cache).finish()
    assert verify(cache) == []
    found = Cache(cache).read("1.2.3", 0, 19)
    assert any(np.array_equal(found, make_study(seed=seed).pixels.array) for seed in (1, 2))


def test_a_writer_continues_when_another_takes_the_old_study_out_meanwhile(cache, monkeypatch):
    rename, taken = os.rename, []

    def renamed(source, target):
        try:
            rename(source, target)
        except OSError:
            if not taken:
                taken.append(rename(target, cache / ".build" / "taken-by-another"))
            raise

    monkeypatch.setattr(os, "rename", renamed)
    CacheWriter(cache).publish(make_study(seed=2))
    CacheWriter(cache).finish()
    assert taken and verify(cache) == []
    assert np.array_equal(Cache(cache).read("1.2.3", 0, 19), make_study(seed=2).pixels.array)


def test_boxes_are_published_without_touching_any_digest_of_content(cache):
    before = Cache(cache).record("1.2.3")
    given = CacheWriter(cache).set_boxes(pd.DataFrame([{"id": "1.2.3", **BOX}, {"id": "9.9", **BOX}]))
    after = Cache(cache).record("1.2.3")
    assert given == 1 and after.study_box.model_dump(exclude={"made_by"}) == BOX
    assert after.model_copy(update={"study_box": None}) == before
    assert Cache(cache).index["x1"].tolist() == [20, pd.NA] and verify(cache) == []
    CacheWriter(cache).set_boxes(pd.DataFrame([{"id": "1.2.4", **BOX, "z_to": 8}]))
    assert Cache(cache).record("1.2.3").study_box is None and Cache(cache).record("1.2.4").study_box is not None


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "1.2.3", **BOX, "x1": 25}],
        [{"id": "1.2.3", **BOX, "z_to": 20}],
        [{"id": "1.2.3", **BOX, "x1": 1}],
        [{"id": "1.2.3", **BOX}, {"id": "1.2.3", **BOX}],
        [{"id": "9.9", **BOX}],
        [{"id": "1.2.3"}],
    ],
)
def test_a_wrong_table_of_boxes_changes_nothing(cache, rows):
    before = files_of(cache)
    with pytest.raises(UsageError):
        CacheWriter(cache).set_boxes(pd.DataFrame(rows))
    assert files_of(cache) == before


def test_labels_stay_until_others_are_given(cache):
    CacheWriter(cache).finish(labels_for("1.2.3", "1.2.4"))
    labels = Cache(cache).labels
    assert labels["id"].tolist() == ["1.2.3", "1.2.4"] and str(labels["C1"].dtype) == "Int8"
    CacheWriter(cache).finish()
    assert Cache(cache).labels.equals(labels) and verify(cache) == []


def test_what_is_no_cache_is_named_in_one_line(cache, tmp_path):
    for path, words in [
        (tmp_path / "cahce", "did you mean .*cache"),
        (tmp_path, "is not a cache"),
        (cache / "1.2.3", "is one study of a cache"),
    ]:
        with pytest.raises(UsageError, match=words) as caught:
            Cache(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"did you mean 1\.2\.[34]\?"):
        Cache(cache).record("1.2.33")
    with pytest.raises(UsageError):
        Cache(cache).record("../cache/1.2.3")


def test_a_cache_of_another_schema_is_not_opened(cache):
    document = json.loads((cache / "zarr.json").read_bytes())
    document["attributes"].pop("digest")
    document["attributes"]["schema_version"] = 2
    from cache_schema.layout import group_document

    (cache / "zarr.json").write_bytes(group_document(document["attributes"]))
    with pytest.raises(CacheError, match="schema 2"):
        Cache(cache)


def test_a_disk_that_gives_back_something_else_keeps_the_old_study(tmp_path, cache, monkeypatch):
    honest, before = folder_changes.write_early, files_of(cache)

    def lying(path, data):
        return honest(path, data[:-1] + bytes([data[-1] ^ 1]) if "/pixels/c" in str(path) else data)

    monkeypatch.setattr(folder_changes, "write_early", lying)
    with pytest.raises(CacheError, match="reads back changed"):
        CacheWriter(cache).publish(make_study("1.2.3", seed=5))
    assert files_of(cache) == before and not verify(cache)


def test_a_writer_leaves_other_peoples_folders_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="neither empty"):
        CacheWriter(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_index_of_a_hundred_thousand_studies_opens_at_once(tmp_path):
    CacheWriter(tmp_path / "cache").finish()
    one = index_frame([]).reindex([0]).assign(rows=512, columns=512, slices=350, bytes=1)
    names = [f"1.2.{n}" for n in range(100_000)]
    many = one.loc[np.zeros(100_000, int)].assign(id=names, content_digest=[f"{n:064x}" for n in range(100_000)])
    write_table(tmp_path / "cache" / "index.parquet", many, "test", {})
    code = "import sys, time; from cache_schema import Cache; t = time.process_time(); n = len(Cache(sys.argv[1]).ids)"
    code += "; print(n, time.process_time() - t)"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")], capture_output=True, text=True, check=True
    )
    count, seconds = ran.stdout.split()
    assert count == "100000" and float(seconds) < 1
