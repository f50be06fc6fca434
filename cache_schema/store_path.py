"""A place in a store, with the part of pathlib's interface that a cache needs: code for folders works on both."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import numpy as np

from cache_schema.store_kinds import DamagedFile, Listed, Store
from cache_schema.stores import UNLISTED, ZIP, open_store, patiently, require_address

Given = TypeVar("Given")
Got = TypeVar("Got")

AT_ONCE = 32
"""requests of one process"""


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """That wait for answers, of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(AT_ONCE)


def soon(function: Callable[..., Got], *arguments: object) -> "Future[Got]":
    """Calls a function that asks a store, in a thread; what it raises, `result` of what is returned raises."""
    return _threads(os.getpid()).submit(function, *arguments)


class Bytes(NamedTuple):
    """A file below a place, or a part of it (size None: up to its end)."""

    name: str
    start: int = 0
    size: int | None = None


@dataclass(frozen=True, order=True)
class StorePath:
    """A file or folder of a store. Small and picklable; the store is opened once a process.

    root: the address of a bucket, host or name, or the path of a zip file. key: below it, "" for the root itself.
    Methods raise FileNotFoundError where there is nothing, StoreError where the store cannot be reached or refuses.
    """

    root: str
    key: str = ""

    def __truediv__(self, name: str | os.PathLike) -> "StorePath":
        return StorePath(self.root, f"{self.key}/{os.fspath(name)}".strip("/"))

    def __str__(self) -> str:
        return f"{self.root.rstrip('/')}/{self.key}" if self.key else self.root

    @property
    def name(self) -> str:
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "StorePath":
        return StorePath(self.root, self.key.rpartition("/")[0])

    @property
    def is_listed(self) -> bool:
        """Whether the store can tell which files it holds."""
        return self.root.partition("://")[0] not in UNLISTED

    @property
    def is_writable(self) -> bool:
        return self.is_listed and not self.root.endswith(ZIP)

    def read_bytes(self) -> bytes:
        return next(self.fetch([Bytes("")])).tobytes()

    def fetch(self, parts: Sequence[Bytes]) -> Iterator[np.ndarray]:
        """uint8 (bytes,) of files below this place, or of parts of them, in order. All are asked for at once.

        Raises DamagedFile where one is shorter.
        """
        store = open_store(self.root)

        def get(part: Bytes) -> np.ndarray:
            name, start, size = part
            key = (self / name).key
            try:
                found = patiently(self.root, lambda: store.get(key, start, size))
            except FileNotFoundError:
                raise FileNotFoundError(key) from None
            except DamagedFile:
                raise DamagedFile(key) from None
            if size is not None and len(found) != size:  # a body that was cut off is an error before
                raise DamagedFile(key)
            return found

        return _threads(os.getpid()).map(get, parts)

    def write_bytes(self, data: bytes) -> None:
        """Whole or not at all; what was there is replaced."""
        self._ask(lambda store: store.put(self.key, data))

    def write_over(self, data: bytes, tag: str | None) -> bool:
        """`write_bytes`, unless another has written since the file had this tag. Returns whether it is written."""
        return self._ask(lambda store: store.put_over(self.key, data, tag))

    def tag(self) -> str | None:
        """What changes whenever the file does; None where there is no file."""
        found = self._ask(lambda store: store.head(self.key))
        return None if found is None else found.tag

    def unlink(self, missing_ok: bool = True) -> None:
        """A file that is not there is no error: stores do not tell."""
        self._ask(lambda store: store.delete(self.key))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a store has no folders."""

    def is_file(self) -> bool:
        return self._ask(lambda store: store.head(self.key)) is not None

    def is_dir(self) -> bool:
        """Whether something lies below; of a store that lists nothing it is assumed."""
        return not self.is_listed or any(True for _ in self.iterdir())

    def exists(self) -> bool:
        return (bool(self.key) and self.is_file()) or self.is_dir()

    def iterdir(self) -> Iterable["StorePath"]:
        """Files and folders of this folder, in no order."""
        return (self / name for name in self._ask(lambda store: store.names(self.key)))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by its name from here."""
        return {name: listed.size for name, listed in self.listing().items()}

    def listing(self) -> dict[str, Listed]:
        """Every file below, by its name from here."""
        prefix = f"{self.key}/" if self.key else ""
        found = self._ask(lambda store: store.listing(self.key))
        return {key.removeprefix(prefix): listed for key, listed in found.items()}

    def read_first(self, size: int) -> tuple[np.ndarray, str, int]:
        """uint8 (bytes,): the file's first bytes, `size` of them at most; its tag, which tells its contents apart; its size."""
        data, (whole, tag) = self._ask(lambda store: store.first(self.key, size))
        return data, tag, whole

    def _ask(self, request: Callable[[Store], Got]) -> Got:
        store = open_store(self.root)
        return patiently(self.root, lambda: request(store))

    def resolve(self) -> "StorePath":
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls, serialization=core_schema.to_string_ser_schema())


Place = Path | StorePath


def place_of(text: "str | os.PathLike | StorePath") -> Place:
    """The place that an address, the path of a zip file or any other path names. Raises UsageError for another address."""
    if isinstance(text, Path | StorePath):
        return StorePath(str(text)) if isinstance(text, Path) and _is_zip(text) else text
    words = os.fspath(text)
    if "://" in words:
        return _in_store(words)
    return place_of(Path(words))


def file_at(path: str | os.PathLike) -> Place:
    """The file with this path or address; a zip file is a file."""
    words = os.fspath(path)
    return _in_store(words) if "://" in words else Path(words)


def place_named(text: str) -> Place:
    """The place whose `str` this is. Unlike what a user types, the key of an object may hold `@`, `?` and `#`."""
    scheme, found, rest = text.partition("://")
    if not found or "/" in scheme:
        return Path(text)
    bucket, _, key = rest.partition("/")
    return StorePath(f"{scheme}://{bucket}", key)


def _in_store(address: str) -> StorePath:
    """One store for a whole bucket, host or name."""
    parts = require_address(address)
    path = unquote(parts.path) if parts.scheme in UNLISTED else parts.path  # of the web, which obstore quotes again
    return StorePath(f"{parts.scheme}://{parts.netloc}", path.strip("/"))


def _is_zip(path: Path) -> bool:
    return path.suffix == ZIP and path.is_file()


def each(function: Callable[[Given], Got], given: Iterable[Given], place: Place | None = None) -> list[Got]:
    """`function` of each, in order; many at once where `place`, or else the first of them, is in a store: there waiting is
    all it costs."""
    given = list(given)
    where: object = given[0] if place is None and given else place
    if not isinstance(where, StorePath):
        return [function(one) for one in given]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, given))
