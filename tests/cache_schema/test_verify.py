"""verify: every way in which a cache can be wrong is named."""

import os
import random
import shutil

import pandas as pd
import pytest
from made_studies import make_study

from cache_schema import CacheWriter
from cache_schema.documents import canonical_json, checksum
from cache_schema.errors import CspineError
from cache_schema.layout import TARGETS, group_document
from cache_schema.store import read_study_document
from cache_schema.tables import read_table, write_table
from cache_schema.verify import verify
from cache_schema.writer import root_document, study_document


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "cache"
    writer = CacheWriter(path)
    for number in range(3):
        writer.publish(make_study(f"1.2.{number}", 9 + number, segmented=number > 0, seed=number))
    writer.finish(pd.DataFrame({"id": [f"1.2.{n}" for n in range(3)], **dict.fromkeys(TARGETS, 1), "fold": 0}))
    return path


@pytest.fixture
def cache(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "cache")
    return tmp_path / "cache"


def problems(cache):
    """verify's lines, or the one line it stops with where the root itself does not check."""
    try:
        return verify(cache)
    except CspineError as error:
        return [str(error)]


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file() and ".build" not in path.parts)


def name_of(cache, path):
    return path.relative_to(cache).parts[0]


def test_a_sound_cache_has_no_problems_and_what_lies_in_build_is_no_part_of_it(cache):
    (cache / ".build" / "anything").write_text("x")
    assert verify(cache) == []
    shutil.rmtree(cache / ".build")
    assert verify(cache) == [] and verify(cache, sample=0) == []


def test_a_flipped_bit_in_any_file_is_named(cache):
    chance = random.Random(0)
    for path in files(cache):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        found = problems(cache)
        assert found and any(name_of(cache, path) in line for line in found), path
        path.write_bytes(data)
    assert verify(cache) == []


def test_any_missing_file_is_named(cache):
    for path in files(cache):
        data = path.read_bytes()
        path.unlink()
        found = problems(cache)
        named = "is not a cache" if path == cache / "zarr.json" else name_of(cache, path)
        assert any(named in line for line in found), path
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["notes.txt", "1.2.0/notes.txt", "1.2.0/pixels/c.9.0.0", "other/readme"])
def test_a_foreign_file_is_named(cache, name):
    (cache / name).parent.mkdir(exist_ok=True)
    (cache / name).write_text("x")
    assert any(name.split("/")[-1] in line or name.split("/")[0] in line for line in verify(cache))


def test_a_study_missing_or_not_indexed_or_under_another_name_is_named(cache):
    shutil.copytree(cache / "1.2.0", cache / "1.2.9")
    assert any(line.startswith("1.2.9") for line in verify(cache))
    shutil.rmtree(cache / "1.2.9")
    shutil.rmtree(cache / "1.2.0")
    assert verify(cache) == ["1.2.0: in the index but not on disk"]
    CacheWriter(cache).publish(make_study("1.2.5"))
    assert "1.2.5: on disk but not in the index" in verify(cache)


def test_pixels_changed_together_with_their_checksums_do_not_match_the_digest(cache):
    """As a careless tool would do it: chunk and list of files agree, the content digest tells."""
    record, _ = read_study_document(cache / "1.2.1")
    CacheWriter(cache).publish(make_study("1.2.1", 10, seed=77))
    files_now = read_study_document(cache / "1.2.1")[1]["files"]
    (cache / "1.2.1" / "zarr.json").write_bytes(study_document(record, files_now))
    CacheWriter(cache).finish()
    assert verify(cache) == ["1.2.1: pixels or geometry do not match the content digest"]
    assert verify(cache, sample=0) == []


def test_two_chunks_that_changed_places_are_named(cache):
    one, other = (cache / study / "pixels" / "c.0.0.0" for study in ("1.2.1", "1.2.2"))
    swapped = other.read_bytes()
    other.write_bytes(one.read_bytes())
    one.write_bytes(swapped)
    listed = read_study_document(cache / "1.2.1")[1]["files"]
    listed["pixels/c.0.0.0"]["bytes"] = len(swapped)
    assert checksum(swapped)["crc32c"] == checksum(other.read_bytes())["crc32c"]
    (cache / "1.2.1" / "zarr.json").write_bytes(study_document(read_study_document(cache / "1.2.1")[0], listed))
    CacheWriter(cache).finish()
    assert "1.2.1: pixels/c.0.0.0 changed" in verify(cache)


def test_another_shape_in_the_record_is_named(cache):
    record, attributes = read_study_document(cache / "1.2.2")
    changed = record.model_copy(update={"columns": 23})
    (cache / "1.2.2" / "zarr.json").write_bytes(study_document(changed, attributes["files"]))
    CacheWriter(cache).finish()
    assert any(line.startswith("1.2.2") and "shape" in line for line in verify(cache))


def test_an_index_that_says_something_else_is_named(cache):
    index = read_table(cache / "index.parquet")
    write_table(cache / "index.parquet", index.assign(slices=[1, *index["slices"][1:]]), "a test", {})
    (cache / "zarr.json").write_bytes(root_document(cache))
    assert verify(cache) == ["1.2.0: its row in the index is not that of its record"]


def test_labels_that_are_none_are_named(cache):
    labels = read_table(cache / "labels.parquet")
    write_table(cache / "labels.parquet", labels.assign(C3=pd.array([1, 0, 7], dtype="Int8")), "a test", {})
    (cache / "zarr.json").write_bytes(root_document(cache))
    assert any(line.startswith("labels.parquet") for line in verify(cache))


def test_a_document_in_another_form_is_named(cache):
    path = cache / "1.2.0" / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b",", b", ", 1))
    assert any("1.2.0: is not in canonical form" in line for line in verify(cache))
    root = {"schema_version": 1, "pixel_hash": "0" * 64, "storage": {}, "files": {}}
    (cache / "zarr.json").write_bytes(group_document(root))
    assert any("pixel rules" in line for line in verify(cache))
    (cache / "zarr.json").write_bytes(canonical_json({"zarr_format": 3}))
    assert problems(cache) and os.path.exists(cache)
