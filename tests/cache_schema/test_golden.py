"""A cache of schema 1 as it was written once: it opens, checks, reads the same, and is written again byte for byte."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from golden import GOLDEN, PART, WHOLE, make_golden, pixels
from made_studies import files_of

from cache_schema import Cache
from cache_schema.documents import read_group
from cache_schema.verify import verify
from preprocess.findings import REASONS

DOCUMENT = Path(__file__).parents[2] / "docs" / "cache.md"


def test_the_golden_cache_opens_and_checks():
    assert verify(GOLDEN) == []
    cache = Cache(GOLDEN)
    assert cache.ids == [WHOLE, PART] and cache.labels["C1"].tolist() == [1, 0]
    whole, part = cache.study(WHOLE), cache.study(PART)
    assert np.array_equal(whole.read(0, 3), pixels())
    assert np.array_equal(part.read(0, 3, (3, 6, 7, 11)), pixels()[:, 6:11, 3:7])
    assert whole.z.tolist() == [1.5, 0.875, 0.25] and whole.slice_number.tolist() == [1, 2, 3]
    assert whole.slice_box[1].tolist() == [3, 4, 9, 11] and whole.vertebra_ratio[1, 6] == 1
    assert whole.value_range.tolist() == [[0, 255], [0, 255], [7, 7]] and part.slice_box is None
    assert whole.record.study_box.x1 == 8 and part.record.origin.columns == 6
    assert whole.record.content_digest == "c25146500362f8f875e4007d5bab54c95ad1c70d0d385f7eaab0b4497fbea276"


def test_the_golden_cache_is_written_again_byte_for_byte(tmp_path):
    make_golden(tmp_path / "cache")
    expected, found = files_of(GOLDEN), files_of(tmp_path / "cache")
    tables = ("index.parquet", "labels.parquet")
    made_by = [pq.read_metadata(folder / tables[0]).created_by for folder in (GOLDEN, tmp_path / "cache")]
    if made_by[0] != made_by[1]:  # a parquet file names the version that wrote it; its content must still be the same
        for name in (*tables, "zarr.json"):
            del expected[name], found[name]
        assert Cache(GOLDEN).index.equals(Cache(tmp_path / "cache").index)
        assert Cache(GOLDEN).labels.equals(Cache(tmp_path / "cache").labels)
    assert found == expected


def test_every_file_of_a_schema_stays_as_it_was_released():
    """Whoever changes these bytes makes another schema: a number of its own, and a golden cache beside this one."""
    assert (
        read_group(GOLDEN / "zarr.json")["digest"] == "d21a243b6ac304c6ae46baf50c327e7cbd1c60ec9b28ac50eab7e1948c37cb94"
    )


def test_the_code_of_the_document_runs_on_it(tmp_path, monkeypatch):
    (tmp_path / "cache").symlink_to(GOLDEN)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)


def test_the_document_lists_every_reason():
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text().partition("## Reasons")[2], re.MULTILINE)
    assert dict(listed) == REASONS


def test_the_document_names_every_field_of_a_record():
    text = DOCUMENT.read_text()
    for field in Cache(GOLDEN).record(WHOLE).model_dump():
        assert f"`{field}`" in text, field
