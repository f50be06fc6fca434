"""Names, chunks, codecs and hashes of a cache on disk, schema 1: what its zarr.json files say."""

import re
from collections.abc import Iterator
from typing import Any

from cache_schema.documents import canonical_json, digest_of

SCHEMA_VERSION = 1
SHARDED_SCHEMA = 2
"""of a cache whose pixels lie in shards: all else is as in schema 1"""
HU_LOW, HU_HIGH = -500, 1300
"""intensity window: level 400, width 1800 (reference 2.2)"""
CHUNK_SLICES = 8
"""whole slices a chunk: the best of window, random triplet and whole study together"""
LEVELS = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
TARGETS = ("patient_overall", *LEVELS)
BOX_BOUNDS = ("x0", "y0", "x1", "y1")

GROUP = "zarr.json"
INDEX, LABELS, REPORT = "index.parquet", "labels.parquet", "report.csv"
BUILD_FOLDER = ".build"
"""what a rerun needs to skip work, and studies being written; no part of the cache"""

STORED_DTYPE = "uint8"
ROUNDING = "round half to even of (clip(HU, low, high) - low) * 255 / (high - low)"
WINDOW = {"low": HU_LOW, "high": HU_HIGH, "unit": "HU"}

PIXEL_RULES = {
    "schema": SCHEMA_VERSION,
    "dtype": STORED_DTYPE,
    "window": WINDOW,
    "rounding": ROUNDING,
    "order": "position along the slice normal, head to feet",
    "orientation": "rows run to the back, columns to the patient's left; turns and flips in the plane are undone",
    "inversion": "MONOCHROME1 is stored as 255 minus its windowed value",
    "padding": "PixelPaddingValue and its range are 0; where they mean an HU inside the window, if connected to the frame's edge",
    "sign": "samples of JPEG frames are unsigned words; BitsStored and PixelRepresentation say which bit is the sign",
}
PIXEL_HASH = digest_of(PIXEL_RULES)
"""over all that changes a pixel value: models and resuming compare it"""

ZSTD_LEVEL = 1
CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
    {"name": "crc32c"},
]
INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
"""of a shard's index, its last bytes: offset and length of each chunk"""
STORAGE = {"chunk_slices": CHUNK_SLICES, "codecs": CODECS, "write_empty_chunks": True}
"""how the pixels are kept: never compared"""

ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pixels": ("uint8", ("z", "y", "x")),
    "z": ("float64", ("z",)),
    "slice_number": ("int32", ("z",)),
    "value_range": ("uint8", ("z", "extreme")),
    "slice_box": ("int16", ("z", "bound")),
    "vertebra_ratio": ("float32", ("z", "level")),
}
"""name -> dtype and dimension names; the last two exist where a segmentation does"""

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "pixels": {"dtype": STORED_DTYPE, "window": WINDOW, "rounding": ROUNDING},
    "z": {"unit": "mm", "about": "along the slice normal, decreasing from head to feet"},
    "slice_number": {"about": "number of the slice's file, or its InstanceNumber"},
    "value_range": {"about": "min and max of the stored slice"},
    "slice_box": {"about": "x0 y0 x1 y1 of C1 to C7 in native pixels, exclusive ends, -1 where empty"},
    "vertebra_ratio": {"about": "area of each level over the largest area it has in the study", "levels": list(LEVELS)},
}

_ID = re.compile(r"[0-9A-Za-z.]{1,64}")


def is_valid_id(id: str) -> bool:
    """A StudyInstanceUID that may serve as a folder name."""
    return bool(_ID.fullmatch(id)) and ".." not in id and not id.startswith(".")


def array_shapes(rows: int, columns: int, slices: int, *, segmented: bool) -> dict[str, tuple[int, ...]]:
    """Every array of a study with its shape."""
    shapes = {"pixels": (slices, rows, columns), "z": (slices,), "slice_number": (slices,), "value_range": (slices, 2)}
    if segmented:
        shapes |= {"slice_box": (slices, len(BOX_BOUNDS)), "vertebra_ratio": (slices, len(LEVELS))}
    return shapes


def schema_of(shard: int | None) -> int:
    """The schema of a cache with so many slices a shard, None for a file a chunk."""
    return SCHEMA_VERSION if shard is None else SHARDED_SCHEMA


def storage_of(shard: int | None) -> dict[str, Any]:
    """What the root's zarr.json says of how the pixels are kept."""
    return STORAGE if shard is None else STORAGE | {"shard_slices": shard}


def array_document(name: str, shape: tuple[int, ...], shard: int | None = None) -> bytes:
    """The zarr.json of one array. Slices of 8 a chunk for pixels, one chunk for the others.

    shard: slices of pixels in one file, where that holds several chunks.
    """
    dtype, dimensions = ARRAYS[name]
    chunk = (CHUNK_SLICES, *shape[1:]) if name == "pixels" else shape
    file, codecs = chunk, CODECS
    if shard is not None and name == "pixels":
        file = (shard, *shape[1:])
        inner = {"chunk_shape": list(chunk), "codecs": CODECS, "index_codecs": INDEX_CODECS, "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(file)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0,
            "codecs": codecs,
            "attributes": ATTRIBUTES[name],
            "dimension_names": list(dimensions),
            "storage_transformers": [],
        }
    )


def group_document(attributes: dict[str, Any]) -> bytes:
    """The zarr.json of a study or of the cache; `digest` is over everything else in it."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return canonical_json(document | {"attributes": attributes | {"digest": digest_of(document)}})


def chunk_file(name: str, first_slice: int = 0, per_file: int = CHUNK_SLICES) -> str:
    """Path below the study's folder of the file that holds this slice, of so many slices a file."""
    return ".".join([f"{name}/c", str(first_slice // per_file), *["0"] * (len(ARRAYS[name][1]) - 1)])


def chunk_starts(z0: int, z1: int, each: int = CHUNK_SLICES) -> range:
    """First slices of the chunks that hold slices z0 up to z1."""
    return range(z0 // each * each, z1, each)


def study_files(rows: int, columns: int, slices: int, *, segmented: bool, shard: int | None = None) -> Iterator[str]:
    """Every file of a study but its own zarr.json."""
    each = shard or CHUNK_SLICES
    for name in array_shapes(rows, columns, slices, segmented=segmented):
        yield f"{name}/{GROUP}"
        yield from (chunk_file(name, first, each) for first in chunk_starts(0, slices if name == "pixels" else 1, each))
