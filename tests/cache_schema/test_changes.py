"""A cache that changes while it is read: what is opened is what the index lists, and what is read is what was opened."""

import pickle
import shutil
from multiprocessing import get_context

import google_crc32c
import numpy as np
import pandas as pd
import pytest
from made_studies import InMemory, make_study
from numcodecs import zstd

from cache_schema import Cache, CacheWriter, Study
from cache_schema.documents import chunk_checksum
from cache_schema.errors import CacheError, StaleStudy, UsageError
from cache_schema.layout import TARGETS
from cache_schema.store import StoredStudy, read_study_document
from cache_schema.study import Origin
from cache_schema.verify import verify
from cache_schema.writer import study_document

CHANGED = r"study 1\.2\.3 was changed after the index was written; run build-cache again \(or start again when it has"
BOX = {"x0": 1, "y0": 2, "x1": 20, "y1": 19, "z_from": 3, "z_to": 19}


@pytest.fixture
def cache(tmp_path):
    writer = CacheWriter(tmp_path / "cache")
    writer.publish(make_study("1.2.3"))
    writer.publish(make_study("1.2.4", 8, segmented=False, seed=1))
    writer.finish(pd.DataFrame({"id": ["1.2.3", "1.2.4"], **dict.fromkeys(TARGETS, 0), "fold": [0, 1]}))
    return tmp_path / "cache"


def other_segmentation() -> Study:
    """The same pixels as those in the cache."""
    study = make_study("1.2.3")
    study.slice_box[2] = 1, 1, 5, 6
    return study


def with_another_pixel() -> Study:
    """In the last of its three chunks."""
    study = make_study("1.2.3")
    study.pixels.array[18, 0, 0] = 1
    return study


CHANGES = {
    "pixels": lambda: make_study("1.2.3", seed=3),
    "one pixel": with_another_pixel,
    "slices": lambda: make_study("1.2.3", 30),
    "size": lambda: make_study("1.2.3", rows=16, columns=40),
    "geometry": lambda: make_study("1.2.3", position=(0.0, 0.0, 31.5)),
    "segmentation": other_segmentation,
    "no segmentation": lambda: make_study("1.2.3", segmented=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_published_before_the_index_is_rewritten_is_not_opened(cache, change):
    """By a reader that was there before and by one that comes; what opens it again is the index of the whole change."""
    early, index_read = Cache(cache), Cache(cache)
    assert index_read.ids == ["1.2.3", "1.2.4"]
    CacheWriter(cache).publish(CHANGES[change]())
    for found in (early, index_read, Cache(cache), pickle.loads(pickle.dumps(index_read))):
        for opened in (found.study, found.record, lambda id, found=found: found.read(id, 0, 1)):
            with pytest.raises(CacheError, match=CHANGED) as error:
                opened("1.2.3")
            assert "\n" not in str(error.value) and error.value.exit_status == 1
        assert found.read("1.2.4", 0, 8).shape == (8, 20, 24), "others are what they were"
    assert StoredStudy(cache / "1.2.3").record == read_study_document(cache / "1.2.3")[0], "who mends it opens it"
    assert verify(cache) == ["1.2.3: its row in the index is not that of its record"]
    CacheWriter(cache).finish()
    assert Cache(cache).study("1.2.3").record == read_study_document(cache / "1.2.3")[0] and verify(cache) == []
    with pytest.raises(CacheError, match=CHANGED):
        index_read.study("1.2.3")


@pytest.mark.parametrize("change", CHANGES)
def test_an_opened_study_gives_what_it_was_opened_with_or_says_that_it_was_replaced(cache, change):
    """Slice by slice and array by array, half of them read before; in this process and in another that it travelled to."""
    expected, study = make_study("1.2.3"), Cache(cache).study("1.2.3")
    study.read(0, 9)
    travelled = pickle.dumps(study)
    CacheWriter(cache).publish(CHANGES[change]())
    stale = 0
    for opened in (study, pickle.loads(travelled)):
        for z in range(19):
            try:
                assert np.array_equal(opened.read(z, z + 1), expected.read(z, z + 1)), z
            except StaleStudy as error:
                stale += 1
                assert str(error) == "1.2.3: was replaced in the cache while in use; start again"
        for name in ("z", "slice_number", "value_range", "slice_box", "vertebra_ratio"):
            try:
                assert np.array_equal(getattr(opened, name), getattr(expected, name)), name
            except StaleStudy:
                stale += 1
        with pytest.raises(StaleStudy, match=r"1\.2\.3"):
            opened.check_fresh()
    assert bool(stale) == (change != "geometry"), "where every byte is the same, only the record tells"


def test_a_reader_in_another_process_keeps_to_the_index_it_was_given(cache):
    """A build that ends meanwhile does not give it other studies than those of the process that sent it."""
    sent = Cache(cache)
    with get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(sent.read, ("1.2.3", 0, 9)), make_study("1.2.3").read(0, 9))
        CacheWriter(cache).publish(make_study("1.2.3", seed=3))
        CacheWriter(cache).finish()
        with pytest.raises(CacheError, match=CHANGED):
            pool.apply(sent.read, ("1.2.3", 0, 9))
        assert np.array_equal(pool.apply(sent.read, ("1.2.4", 0, 8)), sent.read("1.2.4", 0, 8))


def test_labels_that_were_read_travel_and_others_are_those_of_now(cache):
    read, unread = Cache(cache), Cache(cache)
    before = read.labels
    CacheWriter(cache).finish(before.assign(C3=1).astype({"C3": "Int8"}))
    assert pickle.loads(pickle.dumps(read)).labels.equals(before)
    assert pickle.loads(pickle.dumps(unread)).labels["C3"].tolist() == [1, 1]


def test_a_study_that_is_published_but_not_in_the_index_is_not_there(cache):
    before = Cache(cache)
    CacheWriter(cache).publish(make_study("7.7"))
    for found in (before, Cache(cache)):
        assert found.ids == ["1.2.3", "1.2.4"]
        with pytest.raises(CacheError, match=r"study 7\.7 is not in the index; .*when it has ended"):
            found.study("7.7")
    with pytest.raises(UsageError, match=r"no study 7\.8"):
        before.study("7.8")
    CacheWriter(cache).finish()
    assert Cache(cache).study("7.7").id == "7.7"


def test_a_study_that_was_removed_is_missed_by_who_holds_it_and_by_who_opens_it(cache):
    found = Cache(cache)
    study, half = found.study("1.2.3"), found.study("1.2.3")
    half.read(0, 8)
    CacheWriter(cache).remove("1.2.3")
    for asked in (study.check_fresh, lambda: study.read(0, 1), lambda: half.read(0, 1), lambda: study.z):
        with pytest.raises(StaleStudy, match=r"1\.2\.3"):
            asked()
    with pytest.raises(StaleStudy, match=r"1\.2\.3"):
        found.check_fresh("1.2.3")
    for reader in (found, Cache(cache)):
        with pytest.raises(CacheError, match=r"study 1\.2\.3 is in the index but not on disk"):
            reader.study("1.2.3")
    CacheWriter(cache).finish()
    with pytest.raises(UsageError, match=r"no study 1\.2\.3"):
        Cache(cache).study("1.2.3")


def test_boxes_that_are_set_meanwhile_harm_no_reader(cache):
    found = Cache(cache)
    study = found.study("1.2.3")
    found.check_fresh("1.2.3")
    CacheWriter(cache).set_boxes(pd.DataFrame([{"id": "1.2.3", **BOX}]))
    study.check_fresh()
    found.check_fresh("1.2.3")
    assert np.array_equal(study.read(0, 19), make_study("1.2.3").pixels.array) and study.slice_box.shape == (19, 4)
    assert found.record("1.2.3").study_box.x1 == 20 and study.record.study_box is None


def test_the_same_study_in_other_bytes_is_read_on(cache):
    """As another version of zstd would write it: the content digest is of what the chunks hold."""
    study = Cache(cache).study("1.2.3")
    record, attributes = read_study_document(cache / "1.2.3")
    files = dict(attributes["files"])
    for name in ("pixels/c.0.0.0", "z/c.0"):
        data = (cache / "1.2.3" / name).read_bytes()
        other = repacked(data)
        assert other != data
        files[name] = chunk_checksum(other)
        (cache / "1.2.3" / name).write_bytes(other)
    (cache / "1.2.3/zarr.json").write_bytes(study_document(record, files))
    assert np.array_equal(study.read(0, 9), make_study("1.2.3").read(0, 9)) and study.z[0] == 30
    study.check_fresh()


def repacked(data: bytes) -> bytes:
    packed = zstd.compress(zstd.decompress(data[:-4]), 9, True)
    return packed + google_crc32c.value(packed).to_bytes(4, "little")


def test_a_chunk_of_another_place_is_damage_and_no_other_slices(cache):
    """Its own checksum is right, and it is not the one that the study lists there."""
    shutil.copy(cache / "1.2.3/pixels/c.0.0.0", cache / "1.2.3/pixels/c.1.0.0")
    study = Cache(cache).study("1.2.3")
    assert study.read(0, 8).shape == (8, 20, 24)
    with pytest.raises(CacheError, match=r"c\.1\.0\.0 is not the one .* lists"):
        study.read(0, 9)


def test_a_damaged_record_is_no_replaced_study(cache):
    found = Cache(cache)
    study = found.study("1.2.3")
    (cache / "1.2.3/zarr.json").write_bytes(b"{}")
    found.check_fresh("1.2.3")
    found.require_unchanged("1.2.3")
    for asked in (study.check_fresh, lambda: found.study("1.2.3")):
        with pytest.raises(CacheError, match=r"is not a zarr\.json of this project"):
            asked()
    assert np.array_equal(study.read(0, 19), make_study("1.2.3").pixels.array), "what was opened lists its chunks"


def cut(study: Study, origin: Origin) -> Study:
    record = study.record.model_copy(update={"origin": origin, "content_digest": None})
    pixels = study.read(0, 19)[:, origin.y0 : origin.y0 + origin.rows, origin.x0 : origin.x0 + origin.columns]
    labels = {"slice_box": study.slice_box, "vertebra_ratio": study.vertebra_ratio}
    return Study(record, study.z, study.slice_number, InMemory(pixels), **labels)


def test_a_cropped_study_that_is_cut_anew_is_told_from_the_one_before(cache, tmp_path):
    whole, parent = Cache(cache).study("1.2.3"), "of the whole"
    first, second = (Origin(x0=2, y0=3, rows=12, columns=side, parent=parent) for side in (12, 14))
    writer = CacheWriter(tmp_path / "cropped")
    writer.publish(cut(whole, first))
    writer.finish()
    found = Cache(tmp_path / "cropped")
    study = found.study("1.2.3")
    writer.publish(cut(whole, second))
    with pytest.raises(StaleStudy):
        study.read(0, 1, (4, 4, 8, 8))
    with pytest.raises(CacheError, match=CHANGED):
        Cache(tmp_path / "cropped").study("1.2.3")
    writer.finish()
    assert np.array_equal(Cache(tmp_path / "cropped").read("1.2.3", 0, 1, (4, 4, 8, 8)), whole.read(0, 1, (4, 4, 8, 8)))
