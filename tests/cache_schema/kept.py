"""A cache of two studies in each kind of place that one may be read from, and changes to its files from outside."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pandas as pd
from file_server import file_server
from made_studies import make_study
from s3_server import S3Server

from cache_schema import CacheWriter
from cache_schema.layout import TARGETS
from cache_schema.store_path import StorePath, place_of

LISTED, SERVED = ("memory", "s3"), ("http", "zip")
"""written by CacheWriter; made of a local cache"""
IDS = ["1.2.3", "1.2.4"]


@dataclass
class Kept:
    """Where a cache lies, and how its files are changed behind its back."""

    address: str
    put: Callable[[str, bytes], object]
    delete: Callable[[str], object]

    def get(self, name: str) -> bytes:
        return (place_of(self.address) / name).read_bytes()

    def flip(self, name: str) -> None:
        """One bit in the middle of a file."""
        data = bytearray(self.get(name))
        data[len(data) // 2] ^= 4
        self.put(name, bytes(data))


def write_cache(path: str | Path, shard: int | None = None) -> None:
    writer = CacheWriter(path, shard)
    writer.publish(make_study("1.2.3"))
    writer.publish(make_study("1.2.4", 8, segmented=False, seed=1))
    writer.finish(pd.DataFrame({"id": IDS, **dict.fromkeys(TARGETS, 0), "fold": [0, 1]}))


@contextmanager
def kept(kind: str, folder: Path, s3: S3Server | None = None, shard: int | None = None) -> Iterator[Kept]:
    """The cache of `write_cache` in a store of this kind. folder: an empty one, for what must lie on a disk."""
    if kind in LISTED:
        name = uuid4().hex
        address = f"s3://{s3.bucket}/{name}" if kind == "s3" and s3 else f"memory://{name}"
        write_cache(address, shard)
        root = place_of(address)
        assert isinstance(root, StorePath)
        yield Kept(address, lambda name, data: (root / name).write_bytes(data), lambda name: (root / name).unlink())
        return
    write_cache(folder / "cache", shard)
    shutil.rmtree(folder / "cache" / ".build")
    if kind == "http":
        with file_server(folder) as site:
            cache = folder / "cache"
            yield Kept(
                f"{site.address}/cache",
                lambda name, data: (cache / name).write_bytes(data),
                lambda name: (cache / name).unlink(),
            )
        return

    def zipped() -> Path:
        """Under a new name: a process keeps a zip file open."""
        path = folder / f"{uuid4().hex}.zip"
        zip_folder(folder / "cache", path)
        return path

    def put(name: str, data: bytes) -> None:
        (folder / "cache" / name).write_bytes(data)
        found.address = str(zipped())

    def delete(name: str) -> None:
        (folder / "cache" / name).unlink()
        found.address = str(zipped())

    found = Kept(str(zipped()), put, delete)
    yield found


def zip_folder(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and ".build" not in file.parts:
                archive.write(file, file.relative_to(folder).as_posix())
