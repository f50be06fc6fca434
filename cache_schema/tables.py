"""Tables: parquet files that say what made them, from inputs of which digests, and the digest of their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache_schema.documents import canonical_json, write_whole
from cache_schema.errors import CacheError, UsageError, reason_of

KEY = b"cspine"
"""metadata key, in the parquet footer, of {made_by, inputs, digest, ...} as JSON"""

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
    data, digest = table_bytes(frame, made_by, inputs, extra)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
    return digest


def table_bytes(
    frame: pd.DataFrame, made_by: str, inputs: dict[str, str], extra: dict[str, Any] | None = None
) -> tuple[bytes, str]:
    """What `write_table` writes, and the digest of the content."""
    table = _to_arrow(frame)
    digest = _content_digest(table)
    meta = (extra or {}) | {"made_by": made_by, "inputs": inputs, "digest": digest}
    sink = pa.BufferOutputStream()
    # the arrow schema would repeat the parquet schema, and pandas' own metadata names library versions
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: canonical_json(meta)})
    return sink.getvalue().to_pybytes(), digest


def read_table(path: str | Path) -> pd.DataFrame:
    """The frame, with a plain index. Raises UsageError where there is no file or it cannot be read, CacheError where it is
    no parquet."""
    table = _open(path, pq.read_table)
    nullable = {field.name for field in table.schema if field.nullable}
    return pd.DataFrame({name: _to_pandas(table[name], name in nullable) for name in table.column_names})


def table_meta(path: str | Path) -> dict[str, Any]:
    """made_by, inputs, digest and whatever else was said; read from the footer alone.

    A parquet file of another origin has made_by "" and the digest of its content. Raises as `read_table`.
    """
    found = (_open(path, pq.read_metadata).metadata or {}).get(KEY)
    if found is not None:
        return json.loads(found)
    return {"made_by": "", "inputs": {}, "digest": content_digest(read_table(path))}


def content_digest(frame: pd.DataFrame) -> str:
    """sha256 of names, kinds, nulls and values, in the order of columns and rows; not of the file's encoding."""
    return _content_digest(_to_arrow(frame))


def _open(path: str | Path, reader):
    try:
        # by name pyarrow would read `key=value` folders as columns, and takes names in UTF-8 only
        with open(path, "rb") as file:
            return reader(file)
    except FileNotFoundError as error:
        raise UsageError("no such table", where=path, expected="a parquet file") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"cannot be read ({reason_of(error)})", where=path, expected="a parquet file") from error
        raise CacheError("is not a readable parquet file", where=path, do="make the table again") from error


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
