"""Tables: parquet files that say what made them, from inputs of which digests, and the digest of their content.

One of ours may hold a digest of all its bytes too. Whatever it holds is compared the first time that a process reads it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache_schema.documents import canonical_json, stamp, write_whole
from cache_schema.errors import CacheError, CspineError, UsageError, reason_of
from cache_schema.store_path import Place, StorePath

KEY = b"cspine"
"""metadata key, in the parquet footer, of {made_by, inputs, digest, ...} as JSON"""
FILE_DIGEST = "file_digest"
"""in it: sha256 of the file's bytes, with this digest replaced by zeros"""
_NONE_YET = "0" * 64
_STATED = re.compile(rb'(?s).*"%s":"([0-9a-f]{64})"' % FILE_DIGEST.encode())
"""the last place of the file that states it"""

MAKE_AGAIN = "make the table again"
Read = TypeVar("Read")
_checked: set[tuple] = set()
"""files, as the file system tells one state from another, that this process has found whole"""

_NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def write_table(
    path: str | Path, frame: pd.DataFrame, made_by: str, inputs: dict[str, str], extra: dict[str, Any] | None = None
) -> str:
    """Write a frame whole, then rename it into place; returns the digest of its content.

    Columns are numbers, booleans or text; pandas' nullable dtypes come back nullable. `inputs`: name -> digest.
    The same arguments give the same bytes. Raises ValueError for columns of other kinds.
    """
    data, digest = table_bytes(frame, made_by, inputs, (extra or {}) | {FILE_DIGEST: _NONE_YET})
    stated = _STATED.match(data)
    assert stated is not None, "the metadata hold the file's digest"
    start, end = stated.span(1)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, b"".join([data[:start], hashlib.sha256(data).hexdigest().encode(), data[end:]]))
    return digest


def table_bytes(
    frame: pd.DataFrame, made_by: str, inputs: dict[str, str], extra: dict[str, Any] | None = None
) -> tuple[bytes, str]:
    """What `write_table` writes but for the digest of the file, for a cache that lists its files; and that of the content."""
    table = _to_arrow(frame)
    digest = _content_digest(table)
    meta = (extra or {}) | {"made_by": made_by, "inputs": inputs, "digest": digest}
    sink = pa.BufferOutputStream()
    # the arrow schema would repeat the parquet schema, and pandas' own metadata names library versions
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: canonical_json(meta)})
    return sink.getvalue().to_pybytes(), digest


def read_table(path: str | Place, columns: list[str] | None = None) -> pd.DataFrame:
    """The frame, or these columns of it, with a plain index. Raises UsageError where there is no file or it cannot be read,
    CacheError where it is no parquet, or one of ours that is not as it was written."""
    return _open(path, lambda file: _frame(_read(file, columns)))


def table_meta(path: str | Place) -> dict[str, Any]:
    """made_by, inputs, digest and whatever else was said; read from the footer alone where the file was checked before.

    A parquet file of another origin has made_by "" and the digest of its content. Raises as `read_table`.
    """
    found = _open(path, _stated)
    found.pop(FILE_DIGEST, None)
    return found or {"made_by": "", "inputs": {}, "digest": content_digest(read_table(path))}


def own_meta(path: str | Place) -> dict[str, Any]:
    """The same of a table that must be one of ours: raises CacheError where it does not say so."""
    if FILE_DIGEST not in _open(path, _stated):
        raise CacheError("is not a table that this program wrote", where=path, do=MAKE_AGAIN)
    return table_meta(path)


def content_digest(frame: pd.DataFrame) -> str:
    """sha256 of names, kinds, nulls and values, in the order of columns and rows; not of the file's encoding."""
    return _content_digest(_to_arrow(frame))


def _open(path: str | Place, read: Callable[[Any], Read]) -> Read:
    seen = None
    try:
        # by name pyarrow would read `key=value` folders as columns, and takes names in UTF-8 only
        if isinstance(path, StorePath):
            data = path.read_bytes()
        else:
            with open(path, "rb") as file:
                seen = stamp(path, os.fstat(file.fileno()))
                if seen in _checked:
                    return read(file)
                data = file.read()
        if (changed := _changed(data)) is None:
            found = read(pa.BufferReader(data))
            if seen is not None:
                _checked.add(seen)
            return found
    except FileNotFoundError as error:
        raise UsageError("no such table", where=path, expected="a parquet file") from error
    except OSError as error:
        if error.errno is not None:
            raise UsageError(f"cannot be read ({reason_of(error)})", where=path, expected="a parquet file") from error
        changed = "is not a readable parquet file"
    except CspineError:
        raise
    except Exception as error:  # pyarrow has many of its own for bytes that make no sense
        raise CacheError("is not a readable parquet file", where=path, do=MAKE_AGAIN) from error
    raise CacheError(changed, where=path, do=MAKE_AGAIN)


def _changed(data: bytes) -> str | None:
    """What is wrong with a table of ours; None where it is as it was written, or is none of ours."""
    if stated := _STATED.match(data):
        start, end = stated.span(1)
        total = hashlib.sha256(data[:start])
        total.update(_NONE_YET.encode())
        total.update(data[end:])
        same = total.hexdigest().encode() == stated[1]
    else:  # one of a cache, or of an earlier version: what its metadata say is not covered
        found = _stated(pa.BufferReader(data))
        same = not found or (
            FILE_DIGEST not in found and found["digest"] == content_digest(_frame(_read(pa.BufferReader(data))))
        )
    return None if same else "does not match its digest"


def _read(file: Any, columns: list[str] | None = None) -> pa.Table:
    """Without Arrow's threads: one of them may give a Python object back while the interpreter is ending, which aborts the process."""
    opened = pq.ParquetFile(file)
    if columns is not None and (missing := set(columns) - set(opened.schema_arrow.names)):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return opened.read(columns=columns, use_threads=False)


def _stated(file: Any) -> dict[str, Any]:
    """The metadata of a table of ours; empty for one of another origin."""
    return json.loads((pq.read_metadata(file).metadata or {}).get(KEY, b"{}"))


def _frame(table: pa.Table) -> pd.DataFrame:
    nullable = {field.name for field in table.schema if field.nullable}
    return pd.DataFrame({name: _to_pandas(table[name], name in nullable) for name in table.column_names})


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    columns, fields = [], []
    for name, column in frame.items():
        values = pa.array(column, from_pandas=True)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if pa.types.is_large_string(values.type) or pa.types.is_null(values.type):
            values = values.cast(pa.string())
        kind = values.type
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_string(kind)
        ):
            raise ValueError(f"column {name} holds {kind}; a table holds numbers, booleans and text")
        whole = isinstance(column.dtype, np.dtype) and column.dtype.kind in "iub"
        columns.append(values)
        fields.append(pa.field(str(name), kind, nullable=not whole))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _to_pandas(column: pa.ChunkedArray, nullable: bool) -> pd.Series:
    if nullable and column.type in _NULLABLE:
        return column.to_pandas(types_mapper=_NULLABLE.get)
    return column.to_pandas()


def _content_digest(table: pa.Table) -> str:
    total = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        total.update(canonical_json([field.name, str(field.type), field.nullable, len(column)]))
        total.update(np.packbits(column.is_null().to_numpy()).tobytes())
        if pa.types.is_string(field.type):
            texts = pc.fill_null(column, "")
            total.update(pc.binary_length(texts).to_numpy().astype("<i8").tobytes())
            total.update("".join(texts.to_pylist()).encode())
        else:
            filled = pc.fill_null(column, pa.scalar(0).cast(field.type)).to_numpy()
            total.update(filled.astype(filled.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()
