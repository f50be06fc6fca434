"""All changes to a cache. A study is there whole or not at all; the root document is rewritten last."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from cache_schema.arrays import StudyWriter, is_as_listed
from cache_schema.columns import REPORT_COLUMNS, STUDY_BOX, index_frame, index_row, labels_frame
from cache_schema.documents import checksum, sync, sync_and_read, write_whole
from cache_schema.errors import CacheError, UsageError, naming, reason_of
from cache_schema.layout import (
    BUILD_FOLDER,
    GROUP,
    INDEX,
    LABELS,
    PIXEL_HASH,
    REPORT,
    SCHEMA_VERSION,
    STORAGE,
    chunk_starts,
    group_document,
    is_valid_id,
)
from cache_schema.store import read_cache_document, read_study_document
from cache_schema.study import ContentDigest, Study, StudyBox, StudyRecord, blocks, segmentation_digest, value_range
from cache_schema.tables import content_digest, read_table, table_bytes


class CacheWriter:
    """Opens the cache at `path` for changes, or begins one there.

    Raises UsageError where the folder holds something else, CacheError where it holds a cache of another schema or
    other pixel rules. Several processes may publish at once; `finish` is called by one at a time, under `locked`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.build_folder = self.path / BUILD_FOLDER
        if (self.path / GROUP).exists():
            found = read_cache_document(self.path)
            if found["pixel_hash"] != PIXEL_HASH:
                raise CacheError("was made by other pixel rules", where=self.path, do="build it again in a new folder")
            self.build_folder.mkdir(exist_ok=True)
            return
        if self.path.exists() and not self.path.is_dir():
            raise UsageError("is a file", where=self.path, expected="a folder for the cache")
        if self.path.is_dir() and any(not _is_ours(entry) for entry in self.path.iterdir()):
            raise UsageError("is neither empty nor a cache", where=self.path, expected="a new folder or a cache")
        self.build_folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if not (self.path / GROUP).exists():  # another writer may have begun it meanwhile
                self.finish()

    def publish(self, study: Study) -> StudyRecord:
        """Write a study into the cache; returns its record with the digests.

        8 slices are in memory at a time. Every chunk is written once, flushed, and read back from the disk, the record
        last; then the whole is renamed into place, where it replaces a study of the same id. Raises CacheError where
        the disk gives back something else. That, and what reading the study raises, leaves the cache as it was.
        """
        part = self._aside("new", study.id)
        try:
            with naming(part):
                record, files = _write_study(study, part)
                _sync_study(part, files)
            self._swap(part, self.path / study.id)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return record

    def remove(self, id: str) -> None:
        """Take a study out of the cache. Nothing happens where there is none."""
        aside = self._aside("new", id)
        try:
            os.rename(self.path / id, aside)
        except FileNotFoundError:
            return
        sync(self.path)
        shutil.rmtree(aside)

    def finish(
        self,
        labels: pd.DataFrame | None = None,
        report: pd.DataFrame | None = None,
        *,
        made_by: str = "cache_schema",
        inputs: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Rebuild the index from the studies' records and rewrite the root document; returns the index.

        labels: id, patient_overall, C1..C7, fold, kept with made_by, inputs and extra in its metadata. report: the
        columns of `cache_schema.columns.REPORT_COLUMNS`. What is None stays as it is. Raises CacheError for a study
        whose record does not check.
        """
        if labels is not None:
            self._write(LABELS, table_bytes(labels_frame(labels), made_by, inputs or {}, extra)[0])
        if report is not None or not (self.path / REPORT).exists():
            report = pd.DataFrame(columns=REPORT_COLUMNS) if report is None else report[list(REPORT_COLUMNS)]
            self._write(REPORT, report.to_csv(index=False, lineterminator="\n").encode())
        index = self.make_index()
        self._write(INDEX, table_bytes(index, "cache_schema", {"pixel_hash": PIXEL_HASH})[0])
        self._write(GROUP, root_document(self.path))
        return index

    def make_index(self) -> pd.DataFrame:
        """The index as the records on disk give it."""
        return index_frame([index_row(*read_study_document(folder)) for folder in self.studies()])

    def studies(self) -> list[Path]:
        """Folders of all studies on disk, sorted by id."""
        return sorted(entry for entry in self.path.iterdir() if is_valid_id(entry.name) and (entry / GROUP).is_file())

    def has_box(self, id: str) -> bool:
        """Whether a study has a study_box, or had one when the index was written where its own record cannot be read."""
        try:
            return read_study_document(self.path / id)[0].study_box is not None
        except CacheError:
            index = read_table(self.path / INDEX) if (self.path / INDEX).is_file() else index_frame([])
            return bool(index.loc[index["id"] == id, "x0"].notna().any())

    def set_boxes(self, table: pd.DataFrame) -> int:
        """Publish boxes (id, x0, y0, x1, y1, z_from, z_to) as the snapshot; studies not in the table then have none.

        Returns how many studies got one. Rows of other studies are left aside. Raises UsageError, before anything is
        written, for a missing column, an id that is there twice, a box outside its study, or a table that names no
        study of the cache.
        """
        boxes = boxes_of(table)
        with self.locked():
            changed, given = [], 0
            for folder in self.studies():
                record, attributes = read_study_document(folder)
                box = boxes.get(record.id)
                given += box is not None
                if record.study_box != box:
                    changed.append((folder, _with_box(record, box), attributes["files"]))
            if not given:
                raise UsageError("the table names no study of this cache", where=self.path)
            for folder, record, files in changed:
                write_whole(folder / GROUP, study_document(record, files), beside=self.build_folder)
            self.finish()
        return given

    @contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the cache for changes; calls `waiting` once where another process holds it, then waits."""
        with open(self.build_folder / "lock", "wb") as lock:
            if not self._lock(lock, fcntl.LOCK_NB):
                waiting()
                self._lock(lock)
            yield

    def _lock(self, lock: IO[bytes], how: int = 0) -> bool:
        """Whether the lock is ours now. Raises UsageError where the file system has no locks."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | how)
        except BlockingIOError:
            return False
        except OSError as error:
            do = "keep the cache on a file system with locks (flock)"
            raise UsageError(f"cannot be locked ({reason_of(error)})", where=self.path, do=do) from error
        return True

    def sweep(self) -> None:
        """Clear what killed writers left behind. Call it under `locked`, while no process publishes."""
        for aside in sorted(self.build_folder.glob("old/*")):
            there = self.path / aside.name.rpartition("-")[0]
            if not there.exists():
                os.rename(aside, there)  # killed between taking the old study out and putting the new one in
        for kind in ("old", "new"):
            shutil.rmtree(self.build_folder / kind, ignore_errors=True)
        for part in self.build_folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    def _aside(self, kind: str, id: str) -> Path:
        folder = self.build_folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{id}-{secrets.token_hex(6)}"

    def _swap(self, part: Path, final: Path) -> None:
        """Old aside, new in, old removed: who opens the study meanwhile gets old, new or none."""
        old = []
        while True:
            try:
                os.rename(part, final)
                break
            except OSError as error:
                # another writer may have taken the old study out since
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not final.exists():
                    raise
            aside = self._aside("old", final.name)
            try:
                os.rename(final, aside)
                old.append(aside)
            except FileNotFoundError:  # another writer took it
                continue
        sync(self.path)
        for aside in old:
            shutil.rmtree(aside, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.path / name, data, beside=self.build_folder)


def root_document(path: Path) -> bytes:
    """The root's zarr.json as the files beside it ask for."""
    files = {name: checksum((path / name).read_bytes()) for name in (INDEX, LABELS, REPORT) if (path / name).is_file()}
    return group_document(
        {"schema_version": SCHEMA_VERSION, "pixel_hash": PIXEL_HASH, "storage": STORAGE, "files": files}
    )


def study_document(record: StudyRecord, files: dict[str, dict]) -> bytes:
    """A study's zarr.json."""
    kept = record.model_dump(mode="json")
    return group_document({"schema_version": SCHEMA_VERSION, "pixel_hash": PIXEL_HASH, "record": kept, "files": files})


def _write_study(study: Study, folder: Path) -> tuple[StudyRecord, dict[str, dict[str, Any]]]:
    """The record, and what it lists of the study's files."""
    record = study.record
    shape = record.shape
    writer, digest, ranges = StudyWriter(folder), ContentDigest(study), []
    for first, block in zip(chunk_starts(0, shape[0]), blocks(study), strict=True):
        if block.dtype != np.uint8 or block.shape[1:] != shape[1:]:
            raise ValueError(f"{study.id} gives {block.dtype} {block.shape}, its record says uint8 {shape}")
        writer.write_block(first, block, shape)
        digest.update(block)
        ranges.append(value_range(block))
    small = {"z": study.z, "slice_number": study.slice_number, "value_range": np.concatenate(ranges)}
    if study.slice_box is not None and study.vertebra_ratio is not None:
        small |= {"slice_box": study.slice_box, "vertebra_ratio": study.vertebra_ratio}
    for name, values in small.items():
        writer.write_small(name, values)
    found = {"content_digest": digest.hexdigest(), "segmentation_digest": segmentation_digest(study)}
    for name, value in found.items():
        if getattr(record, name) not in (None, value):
            raise CacheError(f"{name} is not what its source promised", where=study.id, do="verify the source")
    record = study.record_after_reading().model_copy(update=found)
    (folder / GROUP).write_bytes(study_document(record, writer.files))
    return record, writer.files


def _sync_study(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Flush every file, then the names, then the record: it must not outlive what it lists."""
    for name, listed in files.items():
        if not is_as_listed(name, sync_and_read(folder / name), listed):
            raise CacheError(f"{name} reads back changed", where=folder, do="check the disk")
    for place in (*sorted({(folder / name).parent for name in files}), folder, folder / GROUP):
        sync(place)
    sync(folder.parent)


def boxes_of(table: pd.DataFrame) -> dict[str, StudyBox]:
    """The boxes of a table by id. Raises UsageError for a missing column, a repeated id, a box that is none."""
    made_by = content_digest(table)
    for column in ("id", *STUDY_BOX):
        if column not in table.columns:
            raise UsageError(f"the table has no column {column}", expected=", ".join(("id", *STUDY_BOX)))
    if table["id"].duplicated().any():
        raise UsageError("is in the table twice", where=table["id"][table["id"].duplicated()].iloc[0])
    found = {}
    for row in table.to_dict("records"):
        try:
            found[str(row["id"])] = StudyBox(**{name: row[name] for name in STUDY_BOX}, made_by=made_by)
        except ValueError as error:
            raise UsageError("its box is empty, or not of whole numbers", where=row["id"]) from error
    return found


def _with_box(record: StudyRecord, box: StudyBox | None) -> StudyRecord:
    try:
        return StudyRecord.model_validate(record.model_dump() | {"study_box": box and box.model_dump()})
    except ValueError as error:
        raise UsageError("its box lies outside the study", where=record.id) from error


def _is_ours(entry: Path) -> bool:
    """Whether it may lie in a cache whose root document was never written, or was lost."""
    known = entry.name in (BUILD_FOLDER, INDEX, LABELS, REPORT)
    return known or (is_valid_id(entry.name) and (entry / GROUP).is_file() and (entry / "pixels" / GROUP).is_file())
