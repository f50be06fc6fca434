"""All changes to a cache. A study is there whole or not at all; the root document is rewritten last."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema.arrays import checked_files
from cache_schema.columns import REPORT_COLUMNS, STUDY_BOX, index_frame, index_row, labels_frame
from cache_schema.documents import checksum, write_whole
from cache_schema.errors import CacheError, UsageError
from cache_schema.folder_changes import FolderChanges
from cache_schema.layout import (
    CHUNK_SLICES,
    GROUP,
    INDEX,
    LABELS,
    PIXEL_HASH,
    REPORT,
    group_document,
    schema_of,
    storage_of,
)
from cache_schema.store import NoStudy, read_cache_document, read_study_document
from cache_schema.store_changes import StoreChanges
from cache_schema.store_path import Place, StorePath, each, place_of
from cache_schema.study import Study, StudyBox, StudyRecord
from cache_schema.study_writer import Files, Write, write_arrays
from cache_schema.tables import content_digest, read_table, table_bytes
from cache_schema.verify import changed_files

LOOKS = 5
"""how often tables are written again in a store where others publish meanwhile: who still does, writes them at the end"""


class CacheWriter:
    """Opens the cache at `path` for changes, or begins one there.

    shard: slices of pixels a file, a multiple of 8, for a cache in a store; None for a file a chunk. A cache keeps what it
    began with.

    Raises UsageError where the place holds something else, is read-only, or holds a cache with another `shard`; CacheError
    where it holds a cache of another schema or other pixel rules. Several processes may publish at once; `finish` is
    called by one at a time, under `locked`. In a store several may call it: each then writes the tables of all.
    """

    def __init__(self, path: str | Place, shard: int | None = None):
        self.path: Place = place_of(path)
        if shard is not None and (shard < CHUNK_SLICES or shard % CHUNK_SLICES):
            raise UsageError(f"{shard} slices a shard", expected=f"a multiple of {CHUNK_SLICES}")
        self._changes = StoreChanges(self.path) if isinstance(self.path, StorePath) else FolderChanges(self.path)
        self.build_folder: Place = self._changes.build_folder
        self._changes.check()
        self.shard = shard
        if is_there := (self.path / GROUP).exists():
            self._join(shard)
        self.build_folder.mkdir(parents=True, exist_ok=True)
        if is_there:
            return
        with self.locked():
            if not (self.path / GROUP).exists():  # another writer may have begun it meanwhile
                self.finish()
        self._join(shard)

    def _join(self, shard: int | None) -> None:
        found = read_cache_document(self.path)
        if found["pixel_hash"] != PIXEL_HASH:
            raise CacheError("was made by other pixel rules", where=self.path, do="build it again in a new folder")
        self.shard = found["storage"].get("shard_slices")
        if shard not in (None, self.shard):
            kept = "no shards" if self.shard is None else f"shards of {self.shard} slices"
            raise UsageError(f"is a cache with {kept}", where=self.path, do="build it again in a new place")

    def publish(self, study: Study) -> StudyRecord:
        """Write a study into the cache; returns its record with the digests.

        8 slices, or one shard, are in memory at a time. Every chunk is written once, and the record last. In a folder each
        is flushed and read back from the disk, and the whole is renamed into place, where it replaces a study of the
        same id; what this raises leaves the cache as it was. In a store the earlier study is gone from the start.
        Raises CacheError where the disk, or the store, gives back something else, and what reading the study raises.
        """
        found: list[StudyRecord] = []

        def fill(write: Write) -> tuple[bytes, Files]:
            record, files = write_arrays(study, write, self.shard)
            found.append(record)
            return study_document(record, files, self.shard), files

        self._changes.publish(study.id, fill)
        return found[0]

    def publish_copy(self, folder: Place) -> StudyRecord:
        """Write a study of another cache, which has the same shards, file by file.

        Raises CacheError where a file is not what its record lists; else as `publish`.
        """
        record, attributes = read_study_document(folder)
        if attributes.get("shard_slices") != self.shard:
            raise ValueError("a study of other shards is published, not copied")
        files: Files = attributes["files"]

        def fill(write: Write) -> tuple[bytes, Files]:
            for name, data in checked_files(folder, files):
                write(name, data)
            return study_document(record, files, self.shard), files

        self._changes.publish(record.id, fill)
        return record

    def remove(self, id: str) -> None:
        """Take a study out of the cache. Nothing happens where there is none."""
        self._changes.remove(id)

    def undo(self) -> None:
        """Remove a cache that was begun and holds nothing yet."""
        self._changes.undo()

    def places(self) -> Sequence[Place]:
        """As `studies`, but in a store with those whose record is not there yet, or no more: a single question."""
        return self._changes.places()

    def studies(self) -> Sequence[Place]:
        """Places of all studies that have a record, sorted by id."""
        return self._changes.studies()

    def locked(self, waiting: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Hold the cache for changes; calls `waiting` once where another process holds it, then waits.

        A store has no locks: nothing is held there.
        """
        return self._changes.locked(waiting)

    def sweep(self) -> None:
        """Clear what killed writers left behind. Call it under `locked`, while no process publishes."""
        self._changes.sweep()

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
        for _ in range(LOOKS):
            index = self.make_index()
            written = table_bytes(index, "cache_schema", {"pixel_hash": PIXEL_HASH})[0]
            self._write(INDEX, written)
            self._write(GROUP, root_document(self.path, self.shard))
            if isinstance(self.path, Path) or self._is_still(written):
                break
        return index

    def _is_still(self, index: bytes) -> bool:
        """Whether no other writer has published a study, or written tables, since: whoever writes last looks once more."""
        same = root_document(self.path, self.shard) == (self.path / GROUP).read_bytes()
        now = table_bytes(self.make_index(), "cache_schema", {"pixel_hash": PIXEL_HASH})[0]
        return same and (self.path / INDEX).read_bytes() == index == now

    def make_index(self, *, whole: bool = False) -> pd.DataFrame:
        """The index as the records give it. whole: without studies of which a file is missing, foreign or of another length."""
        rows = each(partial(self._row, whole=whole), self._changes.places(), self.path)
        return index_frame([row for row in rows if row is not None])

    def _row(self, folder: Place, whole: bool) -> dict[str, Any] | None:
        try:
            record, attributes = read_study_document(folder)
            return None if whole and changed_files(folder, attributes["files"]) else index_row(record, attributes)
        except NoStudy:
            if isinstance(folder, StorePath):
                return None  # another writer is replacing it, and will write the index again
            raise

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
            changed, given = dict[str, bytes](), 0
            for record, attributes in each(read_study_document, self.studies(), self.path):
                box = boxes.get(record.id)
                given += box is not None
                if record.study_box != box:
                    changed[record.id] = study_document(_with_box(record, box), attributes["files"], self.shard)
            if not given:
                raise UsageError("the table names no study of this cache", where=self.path)

            def write(id: str) -> None:
                write_whole(self.path / id / GROUP, changed[id], beside=self.build_folder)

            each(write, changed, self.path)
            self.finish()
        return given

    def labels_tag(self) -> str | None:
        """What changes in a store whenever labels.parquet does; None where there is none, and in a folder."""
        return (self.path / LABELS).tag() if isinstance(self.path, StorePath) else None

    def write_labels(self, labels: bytes, tag: str | None) -> bool:
        """Write labels.parquet; in a store only if no other has written it since it had this tag. Call `finish` then."""
        if isinstance(self.path, StorePath):
            return (self.path / LABELS).write_over(labels, tag)
        self._write(LABELS, labels)
        return True

    def write_file(self, name: str, data: bytes | None) -> None:
        """Write labels.parquet or report.csv as another cache has it, None: remove it. Call `finish` then."""
        if data is None:
            (self.path / name).unlink(missing_ok=True)
        else:
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.path / name, data, beside=self.build_folder)


def root_document(path: Place, shard: int | None = None) -> bytes:
    """The root's zarr.json as the files beside it ask for."""
    files = {name: checksum((path / name).read_bytes()) for name in (INDEX, LABELS, REPORT) if (path / name).is_file()}
    attributes = {"schema_version": schema_of(shard), "pixel_hash": PIXEL_HASH, "storage": storage_of(shard)}
    return group_document(attributes | {"files": files})


def study_document(record: StudyRecord, files: Files, shard: int | None = None) -> bytes:
    """A study's zarr.json."""
    kept = record.model_dump(mode="json")
    attributes = {"schema_version": schema_of(shard), "pixel_hash": PIXEL_HASH, "record": kept, "files": files}
    return group_document(attributes if shard is None else attributes | {"shard_slices": shard})


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
