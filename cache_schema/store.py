"""A cache, in a folder or in a store, as its readers see it.

A study is replaced by one rename, the index is rewritten later. So what is opened is compared with the index, and every
chunk that is read with the record that was opened: a reader gets the studies of one index, or one line.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import ValidationError

from cache_schema.arrays import StoredPixels, read_array
from cache_schema.chunks import chunks_of
from cache_schema.documents import canonical_json, read_group
from cache_schema.errors import CacheError, StaleStudy, UsageError, did_you_mean, did_you_mean_path, reason_of
from cache_schema.layout import GROUP, INDEX, LABELS, array_shapes, is_valid_id, schema_of
from cache_schema.local_copy import LocalCopy
from cache_schema.store_path import Place, StorePath, place_of
from cache_schema.study import Box, Study, StudyRecord
from cache_schema.tables import read_table

Digests = tuple[str | None, str | None]
"""of a study's content and of its segmentation"""
Stamp = tuple[int, ...]
"""identifies the state of a study's zarr.json; another one after each write"""
Read = TypeVar("Read")

SEGMENTED = ("slice_box", "vertebra_ratio")
"""arrays of studies with a segmentation"""

BUILD_AGAIN = "run build-cache again (or start again when it has ended)"


class ChangedStudy(CacheError):
    """The study on disk is not the one that the index lists."""


class NoStudy(CacheError):
    """There is no record where a study should be."""


class StoredStudy(Study):
    """A study of a cache. Its record is read when it is opened, its arrays on first use.

    What it gives is what its record lists, however long it is held: reading raises StaleStudy where the study was
    replaced or removed meanwhile, CacheError where a file is damaged.
    """

    pixels: StoredPixels

    def __init__(self, folder: Place, copy: LocalCopy | None = None):
        """copy: on this machine, of the store that the study lies in."""
        self.folder, self.stamp = folder, _stamp(folder)
        self.record, attributes = read_study_document(folder)
        shard = attributes.get("shard_slices")
        self.pixels = StoredPixels(folder, chunks_of(attributes), self.record.shape, shard, copy)

    @property
    def digests(self) -> Digests:
        return self.record.content_digest, self.record.segmentation_digest

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        return self._as_opened(lambda: Study.read(self, z0, z1, box))

    def __getattr__(self, name: str) -> Any:
        """z, slice_number, slice_box and vertebra_ratio, each read on first use."""
        if name not in ("z", "slice_number", *SEGMENTED):
            raise AttributeError(name)
        value = None if name in SEGMENTED and self.record.segmentation_digest is None else self._array(name)
        setattr(self, name, value)
        return value

    @cached_property
    def value_range(self) -> np.ndarray:
        return self._array("value_range")

    def check_fresh(self) -> None:
        """Raises StaleStudy where the study was replaced or removed since it was opened; a new study_box is fine.

        A stat where its zarr.json was not written since. Raises CacheError where that is damaged.
        """
        self.stamp = _still(self.folder, self.digests, self.stamp)

    def _array(self, name: str) -> np.ndarray:
        slices, rows, columns = self.record.shape
        shape = array_shapes(rows, columns, slices, segmented=True)[name]
        return self._as_opened(lambda: read_array(self.folder, name, self.pixels.chunks, shape, self.pixels.copy))

    def _as_opened(self, read: Callable[[], Read]) -> Read:
        """What `read` gives. Where it fails, raises StaleStudy, or reads again the same content that was published anew."""
        try:
            return read()
        except CacheError:
            self.pixels.chunks = chunks_of(_document_of(self.folder, self.digests))
            return read()


def _stamp(folder: Place) -> Stamp | None:
    """None where there is no study, and in a store: there the record itself is compared."""
    if isinstance(folder, StorePath):
        return None
    try:
        status = os.stat(folder / GROUP)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _still(folder: Place, digests: Digests, stamp: Stamp | None) -> Stamp | None:
    """The study's stamp now, `stamp` being an earlier one. Raises StaleStudy where its digests are no longer these."""
    now = _stamp(folder)  # before the record is read: what is written in between has another one
    if now is None or now != stamp:
        _document_of(folder, digests)
    return now


def _document_of(folder: Place, digests: Digests) -> dict[str, Any]:
    """The attributes of the study's zarr.json. Raises StaleStudy where it is not, or no longer, the one with these digests."""
    try:
        record, attributes = _read_document(folder)
    except FileNotFoundError:
        record, attributes = None, {}
    if record is None or (record.content_digest, record.segmentation_digest) != digests:
        raise StaleStudy("was replaced in the cache while in use", where=folder.name, do="start again")
    return attributes


def read_study_document(folder: Place) -> tuple[StudyRecord, dict]:
    """The record, and all attributes of the study's zarr.json: schema_version, pixel_hash, record, files, digest."""
    try:
        return _read_document(folder)
    except FileNotFoundError as error:
        raise NoStudy("no such study", where=folder, do="build the cache again") from error


def _read_document(folder: Place) -> tuple[StudyRecord, dict]:
    """Raises FileNotFoundError where there is no study."""
    try:
        attributes = read_group(folder / GROUP)
        expected = schema_of(attributes.get("shard_slices"))
        if attributes["schema_version"] != expected:
            raise CacheError(f"has schema {attributes['schema_version']}", where=folder, expected=f"schema {expected}")
        return StudyRecord.model_validate_json(canonical_json(attributes["record"])), attributes
    except FileNotFoundError:
        raise
    except ValidationError as error:
        raise CacheError(
            "its record is not one of schema 1", where=folder / GROUP, do="build this study again"
        ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(error, folder, "build this study again") from error


class Cache:
    """A cache of decoded studies, read-only and picklable. Opening it reads one small file, `ids` and `index` one more.

    It stays with the index that it read first. A study that is not, or no longer, the one that the index lists is not
    opened: ChangedStudy says so, whatever a build has done or is doing meanwhile. Only `study_box` may differ.

    The index travels when a Cache is pickled, and so do labels that were read: a process that read them anew could have
    those of a build that ended in between, and open other studies than the process that sent it.

    Labels are no part of a study: they are those of their first use. Whoever counts on them keeps their digest.

    path: a folder, the address of a store (cache_schema.stores), or a zip file. copy: of a store's chunks, on this machine.

    Raises UsageError where there is no cache, CacheError where it is of another schema or damaged, StoreError where the
    store cannot be reached; so does whatever reads from it.
    """

    def __init__(self, path: str | Place, copy: LocalCopy | None = None):
        self.path = place_of(path)
        self.copy = copy
        self.attributes = read_cache_document(self.path)

    def __getstate__(self) -> dict:
        travels = {"path": self.path, "copy": self.copy, "attributes": self.attributes, "index": self.index}
        return travels | ({"labels": self.labels} if "labels" in self.__dict__ else {})

    @property
    def pixel_hash(self) -> str:
        """Over all that changes a pixel value; models keep it."""
        return self.attributes["pixel_hash"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a study, sorted by id; columns in `cache_schema.columns.INDEX_COLUMNS`."""
        return read_table(self.path / INDEX)

    @cached_property
    def ids(self) -> list[str]:
        return self.index["id"].tolist()

    @cached_property
    def labels(self) -> pd.DataFrame | None:
        """id, patient_overall, C1..C7 (Int8, null where unknown), fold (Int8); None where the cache has none."""
        return read_table(self.path / LABELS) if (self.path / LABELS).is_file() else None

    def record(self, id: str) -> StudyRecord:
        """Raises as `study`."""
        return self.study(id).record

    def study(self, id: str) -> Study:
        """Raises UsageError for an id that is none of the cache's, ChangedStudy where the study on disk is not that of the index,
        CacheError where its record is damaged."""
        if id not in self._digests:
            raise self._unknown(id)
        try:
            study = StoredStudy(self.path / id, self.copy)
        except NoStudy:
            raise self._changed(id) from None
        if study.digests != self._digests[id]:
            raise self._changed(id)
        self._stamps[id] = study.stamp
        return study

    def read(self, id: str, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w). Keep the study open instead where more than one window of it is read."""
        return self.study(id).read(z0, z1, box)

    def require_unchanged(self, id: str) -> None:
        """What `study` raises of a study that is another, without opening it.

        A stat where it was compared with the index before and not written since. Damage is for those to say who read it.
        """
        try:
            self.check_fresh(id)
        except StaleStudy:
            raise self._changed(id) from None

    def check_fresh(self, id: str) -> None:
        """The same for who has read from a study: raises StaleStudy where it was replaced or removed."""
        with suppress(CacheError):
            self._stamps[id] = _still(self.path / id, self._digests[id], self._stamps.get(id))

    @cached_property
    def _digests(self) -> dict[str, Digests]:
        columns = (self.index[name] for name in ("id", "content_digest", "segmentation_digest"))
        return {id: (content, own if isinstance(own, str) else None) for id, content, own in zip(*columns, strict=True)}

    @cached_property
    def _stamps(self) -> dict[str, Stamp | None]:
        """Of studies as they were when they were last compared with the index."""
        return {}

    def _changed(self, id: str) -> ChangedStudy:
        there = (self.path / id / GROUP).is_file()
        what = "was changed after the index was written" if there else "is in the index but not on disk"
        return ChangedStudy(f"study {id} {what}", where=self.path, do=BUILD_AGAIN)

    def _unknown(self, id: str) -> ChangedStudy | UsageError:
        if is_valid_id(id) and (self.path / id / GROUP).is_file():
            return ChangedStudy(
                f"study {id} is not in the index; a build has not ended", where=self.path, do=BUILD_AGAIN
            )
        return UsageError(f"no study {id}", where=self.path, do=did_you_mean(id, self.ids, cutoff=0.8))

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"


def _damaged(error: Exception, folder: Place, do: str) -> CacheError:
    what = reason_of(error) if isinstance(error, OSError) else str(error)
    return CacheError(what, where=folder / GROUP, do=do)


def read_cache_document(path: Place) -> dict:
    """schema_version, pixel_hash, storage, files, digest: what the root of a cache says."""
    expected = "a cache made by preprocess build-cache"
    if isinstance(path, Path) and not path.is_dir():
        raise UsageError("no such folder", where=path, expected=expected, do=did_you_mean_path(path))
    try:
        attributes = read_group(path / GROUP)
        found, shard = attributes["schema_version"], attributes.get("storage", {}).get("shard_slices")
    except FileNotFoundError as error:
        if isinstance(path, StorePath):
            path.is_dir()  # tells of a bucket that is not there
        raise UsageError("is not a cache", where=path, expected=expected) from error
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise _damaged(error, path, "run build-cache again") from error
    if "record" in attributes:
        raise UsageError("is one study of a cache", where=path, expected="the cache", do=f"did you mean {path.parent}?")
    if found != schema_of(shard):
        raise CacheError(
            f"has schema {found}",
            where=path,
            expected=f"schema {schema_of(shard)}",
            do="build it again in a new folder",
        )
    return attributes
