"""Stores as files by their keys: behind obstore, or in a zip file.

obstore is asked by calls that block, not by its futures as zarr-python's ObjectStore does: these may end a process with
SIGABRT where one completes while the interpreter exits.
"""

import zipfile
import zlib
from collections.abc import Iterable
from io import UnsupportedOperation
from typing import Any, NamedTuple, Protocol

import numpy as np

NO_BUCKET = "NoSuchBucket"
"""in S3's answer"""


class DamagedFile(OSError):
    """A file of a store that ends before the part that was asked for, or a zip file's that cannot be unpacked.

    Asking again would not help.
    """


def ends_before(error: Exception) -> bool:
    """Whether a file ends before the range that was asked for: status 416, and what obstore's memory says."""
    return "status code: 416" in str(error) or "Wanted range starting at" in str(error)


class Listed(NamedTuple):
    """What a store tells of a file. tag: another one for another content, such as S3's ETag."""

    size: int
    tag: str


class Store(Protocol):
    """Files by their keys. Raises FileNotFoundError where there is none, and whatever obstore raises."""

    def get(self, key: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """uint8 (bytes,): a file from byte `start` on, `size` of them at most; None: all."""

    def put(self, key: str, data: bytes) -> None:
        """Whole or not at all."""

    def put_over(self, key: str, data: bytes, tag: str | None) -> bool:
        """Put it where the file still has this tag, None: where there is no file. Returns whether it did."""

    def delete(self, key: str) -> None: ...

    def head(self, key: str) -> Listed | None:
        """What the file is now; None where there is none."""

    def names(self, folder: str) -> list[str]:
        """Files and folders of a folder, "" for the first."""

    def first(self, key: str, size: int) -> tuple[np.ndarray, Listed]:
        """The first bytes of a file, `size` of them at most, and what it is now."""

    def listing(self, folder: str) -> dict[str, Listed]:
        """Every file below a folder, by its key."""


class ObjectStore:
    """Behind obstore."""

    def __init__(self, store: Any):
        self.store = store

    def get(self, key: str, start: int = 0, size: int | None = None) -> np.ndarray:
        import obstore

        if size is None:
            return np.frombuffer(memoryview(obstore.get(self.store, key).bytes()), np.uint8)
        found = obstore.get_range(self.store, key, start=start, length=size)
        return np.frombuffer(memoryview(found), np.uint8)

    def put(self, key: str, data: bytes) -> None:
        import obstore

        obstore.put(self.store, key, data)

    def put_over(self, key: str, data: bytes, tag: str | None) -> bool:
        import obstore
        from obstore import exceptions

        try:
            obstore.put(self.store, key, data, mode="create" if tag is None else {"e_tag": tag})
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        except exceptions.NotSupportedError:  # a store without conditions
            self.put(key, data)
        return True

    def delete(self, key: str) -> None:
        import obstore

        try:
            obstore.delete(self.store, key)
        except FileNotFoundError as error:  # some stores tell
            if NO_BUCKET in str(error):
                raise

    def head(self, key: str) -> Listed | None:
        import obstore

        try:
            return _listed(obstore.head(self.store, key))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        import obstore

        found = obstore.list_with_delimiter(self.store, folder or None)
        keys = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return [key.rstrip("/").rpartition("/")[2] for key in keys]

    def first(self, key: str, size: int) -> tuple[np.ndarray, Listed]:
        import obstore

        try:
            found = obstore.get(self.store, key, options={"range": (0, size)})
            return np.frombuffer(memoryview(found.bytes()), np.uint8), _listed(found.meta)
        except obstore.exceptions.BaseError as error:
            if not ends_before(error):
                raise
        return np.empty(0, np.uint8), _listed(obstore.head(self.store, key))  # an empty file has no first byte

    def listing(self, folder: str) -> dict[str, Listed]:
        import obstore

        batches: Iterable[Any] = obstore.list(self.store, folder or None)
        found = {each["path"]: _listed(each) for batch in batches for each in batch}
        # consoles mark a folder by an empty object whose name ends in a slash, which is not told here: it is no file
        return {key: listed for key, listed in found.items() if listed.size or self.head(key)}


class ZipStore:
    """A zip file, for reading."""

    def __init__(self, path: str):
        self._file = zipfile.ZipFile(path)

    def get(self, key: str, start: int = 0, size: int | None = None) -> np.ndarray:
        try:
            with self._file.open(key) as file:
                file.seek(start)
                return np.frombuffer(file.read(-1 if size is None else size), np.uint8)
        except KeyError:
            raise FileNotFoundError(key) from None
        except (zipfile.BadZipFile, EOFError, zlib.error):
            raise DamagedFile(key) from None

    def put(self, key: str, data: bytes) -> None:
        raise UnsupportedOperation("a zip file is read-only")

    def put_over(self, key: str, data: bytes, tag: str | None) -> bool:
        raise UnsupportedOperation("a zip file is read-only")

    def delete(self, key: str) -> None:
        raise UnsupportedOperation("a zip file is read-only")

    def head(self, key: str) -> Listed | None:
        return self.listing("").get(key)

    def names(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in self.listing(folder)})

    def first(self, key: str, size: int) -> tuple[np.ndarray, Listed]:
        return self.get(key, 0, size), self.listing("")[key]

    def listing(self, folder: str) -> dict[str, Listed]:
        prefix = f"{folder}/" if folder else ""
        entries = (each for each in self._file.infolist() if each.filename.startswith(prefix) and not each.is_dir())
        return {each.filename: Listed(each.file_size, f"{each.CRC:08x}") for each in entries}


def _listed(meta: Any) -> Listed:
    return Listed(meta["size"], meta["e_tag"] or str(meta["last_modified"]))
