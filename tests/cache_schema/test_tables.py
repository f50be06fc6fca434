"""Tables: what is written comes back, with digests that only the content decides."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import content_digest, read_table, table_meta, write_table


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "id": ["1.2", None, "äö"],
            "z_index": np.array([1, 2, 3], np.int32),
            "C1": pd.array([1, None, 0], dtype="Int8"),
            "x": np.array([0.5, np.nan, -1], np.float32),
            "has_box": [True, False, True],
        }
    )


def test_kinds_and_nulls_come_back(tmp_path, frame):
    write_table(tmp_path / "t.parquet", frame, "a test", {"labels": "abc"})
    found = read_table(tmp_path / "t.parquet")
    assert found.dtypes.astype(str).tolist()[1:] == ["int32", "Int8", "float32", "bool"]
    pd.testing.assert_frame_equal(found, frame, check_dtype=False)


def test_a_column_stays_nullable_when_it_holds_no_null(tmp_path, frame):
    write_table(tmp_path / "t.parquet", frame.iloc[[0, 2]], "a test", {})
    assert str(read_table(tmp_path / "t.parquet")["C1"].dtype) == "Int8"
    write_table(tmp_path / "t.parquet", frame.iloc[:0], "a test", {})
    assert str(read_table(tmp_path / "t.parquet")["C1"].dtype) == "Int8"


def test_the_footer_tells_what_made_the_table(tmp_path, frame):
    digest = write_table(tmp_path / "a" / "t.parquet", frame, "a test", {"labels": "abc"}, {"folds": "5"})
    expected = {"made_by": "a test", "inputs": {"labels": "abc"}, "digest": digest, "folds": "5"}
    assert table_meta(tmp_path / "a" / "t.parquet") == expected
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["t.parquet"]


def test_the_same_table_gives_the_same_bytes(tmp_path, frame):
    for name in ("a", "b"):
        write_table(tmp_path / name, frame.copy(), "a test", {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b"pandas" not in (tmp_path / "a").read_bytes()


def test_the_digest_sees_every_value_kind_name_and_null(frame):
    digest = content_digest(frame)
    assert content_digest(frame.reset_index(drop=True).copy()) == digest
    changes = [
        frame.assign(id=["1.2", "", "äö"]),
        frame.assign(id=["1.2ä", None, "ö"]),
        frame.assign(z_index=frame["z_index"].astype("int64")),
        frame.assign(C1=pd.array([1, 0, 0], dtype="Int8")),
        frame.assign(x=frame["x"].fillna(0)),
        frame.assign(has_box=[True, True, True]),
        frame.rename(columns={"x": "y"}),
        frame.iloc[::-1],
        frame[["z_index", "id", "C1", "x", "has_box"]],
    ]
    assert len({digest, *map(content_digest, changes)}) == 10


def test_a_table_of_other_origin_is_read_and_has_the_digest_of_its_content(tmp_path, frame):
    frame.to_parquet(tmp_path / "t.parquet")
    meta = table_meta(tmp_path / "t.parquet")
    assert meta["made_by"] == "" and meta["digest"] == content_digest(read_table(tmp_path / "t.parquet"))


def test_what_is_no_table_is_one_clear_line(tmp_path):
    (tmp_path / "t.parquet").write_text("id,x")
    with pytest.raises(CacheError, match="not a readable parquet"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="no such table"):
        table_meta(tmp_path / "missing.parquet")
    with pytest.raises(ValueError, match="column when"):
        write_table(tmp_path / "x.parquet", pd.DataFrame({"when": [pd.Timestamp("2020")]}), "a test", {})
    assert not (tmp_path / "x.parquet").exists()


def test_columns_are_those_asked_for_and_one_that_is_not_there_is_one_line(tmp_path, frame):
    write_table(tmp_path / "t.parquet", frame, "test", {})
    name = frame.columns[0]
    assert list(read_table(tmp_path / "t.parquet", [name]).columns) == [name]
    with pytest.raises(CacheError, match="not a readable parquet file"):
        read_table(tmp_path / "t.parquet", [name, "no such column"])


def test_reading_and_writing_start_no_thread_that_could_outlive_the_interpreter(tmp_path, frame):
    """One of Arrow's that gives a Python object back while the interpreter is ending aborts the process."""
    write_table(tmp_path / "t.parquet", frame, "test", {})
    code = """
import os, sys
from cache_schema.tables import content_digest, read_table, table_meta, write_table
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
for _ in range(3):  # the first time all bytes are checked
    found = read_table(sys.argv[1])
write_table(sys.argv[1], found, "test", {})
table_meta(sys.argv[1])
print(threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "t.parquet"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
