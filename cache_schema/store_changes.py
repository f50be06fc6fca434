"""Changes to a cache in a store, where nothing can be renamed or locked: a study is there when its record is.

A study that is replaced loses its record first. Its new files are then written over the old ones, and the record last.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore

from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import BUILD_FOLDER, GROUP, INDEX, LABELS, REPORT, is_valid_id
from cache_schema.store_path import StorePath, each
from cache_schema.study_writer import Fill

WRITES_AT_ONCE = 8


class StoreChanges:
    """path: where the cache begins."""

    def __init__(self, path: StorePath):
        self.path, self.build_folder = path, path / BUILD_FOLDER

    def check(self) -> None:
        """Raises UsageError where the store cannot be written, or holds something else there."""
        if not self.path.is_writable:
            do = "write a zip file with preprocess copy" if self.path.is_listed else None
            raise UsageError("is read-only", where=self.path, expected="a folder, s3://, gs:// or memory://", do=do)
        is_new = not (self.path / GROUP).is_file()
        if is_new and any(not _is_ours(entry) for entry in self.path.iterdir()):
            raise UsageError("is neither empty nor a cache", where=self.path, expected="a new prefix, or a cache")

    def publish(self, id: str, fill: Fill) -> None:
        """Write a study's files by `fill`, and its zarr.json last. Where this raises, a study that it replaces is gone."""
        place = self.path / id
        (place / GROUP).unlink()
        with _Uploads(place) as uploads:
            document, files = fill(uploads.write)
        found = place.sizes()
        for name in found.keys() - files.keys():
            (place / name).unlink()
        if any(found.get(name) != listed["bytes"] for name, listed in files.items()):
            raise CacheError("the store does not hold what was written", where=place, do="build this study again")
        (place / GROUP).write_bytes(document)

    def remove(self, id: str) -> None:
        """Take a study out of the cache, its record first. Nothing happens where there is none."""
        place = self.path / id
        (place / GROUP).unlink()
        each(lambda name: (place / name).unlink(), place.sizes(), place)

    def undo(self) -> None:
        for name in (GROUP, INDEX, REPORT):
            (self.path / name).unlink()

    def places(self) -> list[StorePath]:
        """Where something of a study lies, its record perhaps; sorted by id."""
        return sorted(entry for entry in self.path.iterdir() if is_valid_id(entry.name))

    def studies(self) -> list[StorePath]:
        """Places of all studies with a record, sorted by id."""
        found = self.places()
        there = each(lambda entry: (entry / GROUP).is_file(), found, self.path)
        return [entry for entry, is_there in zip(found, there, strict=True) if is_there]

    @contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Nothing is held: writers of one study write the same files, and who ends last writes the tables of all."""
        yield

    def sweep(self) -> None:
        """Nothing: files without a record may be those of a writer at work. The next build of the study writes over them."""


class _Uploads:
    """Writes files side by side, some at a time. What failed is raised at the end, or by the next write."""

    def __init__(self, place: StorePath):
        self.place = place
        self._pool, self._room = ThreadPoolExecutor(WRITES_AT_ONCE), BoundedSemaphore(2 * WRITES_AT_ONCE)
        self._under_way: list[Future[None]] = []

    def write(self, name: str, data: bytes) -> None:
        self._room.acquire()
        self._raise_failed()
        upload = self._pool.submit((self.place / name).write_bytes, data)
        upload.add_done_callback(lambda _: self._room.release())
        self._under_way.append(upload)

    def _raise_failed(self) -> None:
        left = []
        for upload in self._under_way:
            if upload.done():
                upload.result()
            else:
                left.append(upload)
        self._under_way = left

    def __enter__(self) -> "_Uploads":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=raised[0] is not None)
        if raised[0] is None:
            self._raise_failed()


def _is_ours(entry: StorePath) -> bool:
    """Whether it may lie in a cache whose root document was never written, or was lost."""
    known = entry.name in (BUILD_FOLDER, INDEX, LABELS, REPORT)
    # any object of its pixels: another build's arrive in any order
    return known or (is_valid_id(entry.name) and any(True for _ in (entry / "pixels").iterdir()))
