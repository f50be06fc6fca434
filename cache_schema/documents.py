"""Canonical JSON, its digest, and files that are written whole or not at all."""

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c

from cache_schema.errors import naming
from cache_schema.store_path import Place, StorePath

SETTLED_SECONDS = 2.0
"""a write after this time changes the file's times; file systems count time in steps"""


def stamp(path: str | Path, status: os.stat_result) -> tuple | None:
    """Identifies the state of a file, so that it need not be read twice. None for a file changed within SETTLED_SECONDS."""
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        return None
    return os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def canonical_json(document: Any) -> bytes:
    """ASCII, sorted keys, no spaces, shortest numbers that read back equal, a newline at the end; ValueError on NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def digest_of(document: Any) -> str:
    """sha256 of the canonical form, hexadecimal."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def checksum(data: bytes) -> dict[str, Any]:
    """How a file is listed: its length in bytes and its CRC-32C (Castagnoli), hexadecimal."""
    return {"bytes": len(data), "crc32c": f"{google_crc32c.value(data):08x}"}


def chunk_checksum(data: bytes) -> dict[str, Any]:
    """How a chunk is listed: by the CRC of all but its last four bytes, which hold that CRC (little endian).

    A CRC over data and its own CRC is the same constant for every chunk, so it could not tell chunks apart.
    """
    return {"bytes": len(data), "crc32c": f"{google_crc32c.value(data[:-4]):08x}"}


def write_whole(path: Place, data: bytes, *, beside: Place | None = None) -> None:
    """Write, flush to the disk, rename into place. `beside`: the unfinished file's folder, on the same file system.

    In a store a file appears whole by itself. An OSError names `path`, not the unfinished file.
    """
    if isinstance(path, StorePath):
        path.write_bytes(data)
        return
    assert not isinstance(beside, StorePath), "beside a file of a folder"
    part = (beside or path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)
        raise
    sync(path.parent)


def write_early(path: Path, data: bytes) -> None:
    """Write a file, and have the system begin to bring it to the disk: flushing it later then takes less long."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        _forget_pages(file.fileno())


def _forget_pages(file: int) -> None:
    """Takes an open file out of the page cache; what is not on the disk yet, Linux begins to write and keeps."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk. A rename survives a power loss once its folder is flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_and_read(path: Path) -> bytes:
    """Flush a file's bytes to the disk, and read them from there and not from the page cache."""
    with open(path, "rb") as file, naming(path):
        os.fsync(file.fileno())
        _forget_pages(file.fileno())
        return file.read()


def read_group(path: Place) -> dict[str, Any]:
    """The attributes of a group's zarr.json. Raises FileNotFoundError, and ValueError where form or digest is wrong."""
    data = path.read_bytes()
    try:
        document = json.loads(data)
        attributes = dict(document["attributes"])
        digest = attributes.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("is not a zarr.json of this project") from error
    if canonical_json(document) != data:
        raise ValueError("is not in canonical form")
    if digest != digest_of(document | {"attributes": attributes}):
        raise ValueError("does not match its digest")
    return attributes | {"digest": digest}
