"""A cache on disk, as its readers see it."""

import difflib
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from cache_schema.arrays import StoredPixels, read_array
from cache_schema.documents import canonical_json, read_group
from cache_schema.errors import CacheError, StaleStudy, UsageError
from cache_schema.layout import GROUP, INDEX, LABELS, SCHEMA_VERSION, is_valid_id
from cache_schema.study import Box, Study, StudyRecord
from cache_schema.tables import read_table


class StoredStudy(Study):
    """A study of a cache. Its record is read when it is opened, its arrays on first use."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record = read_record(folder)
        self.pixels = StoredPixels(folder)

    @cached_property
    def z(self) -> np.ndarray:
        return read_array(self.folder, "z")

    @cached_property
    def slice_number(self) -> np.ndarray:
        return read_array(self.folder, "slice_number")

    @cached_property
    def value_range(self) -> np.ndarray:
        return read_array(self.folder, "value_range")

    @cached_property
    def slice_box(self) -> np.ndarray | None:
        return self._segmentation("slice_box")

    @cached_property
    def vertebra_ratio(self) -> np.ndarray | None:
        return self._segmentation("vertebra_ratio")

    def _segmentation(self, name: str) -> np.ndarray | None:
        return None if self.record.segmentation_digest is None else read_array(self.folder, name)

    def check_fresh(self) -> None:
        """Raises StaleStudy where the study was replaced or removed since it was opened; a new study_box is fine."""
        try:
            now = read_record(self.folder)
        except CacheError:
            now = None
        opened = self.record
        if now is None or (now.content_digest, now.segmentation_digest) != (
            opened.content_digest,
            opened.segmentation_digest,
        ):
            raise StaleStudy("was replaced in the cache while in use", where=self.id, do="start again")


def read_record(folder: Path) -> StudyRecord:
    """The record of the study in this folder. Raises CacheError where it is missing or does not check."""
    return read_study_document(folder)[0]


def read_study_document(folder: Path) -> tuple[StudyRecord, dict]:
    """The record, and all attributes of the study's zarr.json: schema_version, pixel_hash, record, files, digest."""
    try:
        attributes = read_group(folder / GROUP)
        if attributes["schema_version"] != SCHEMA_VERSION:
            raise CacheError(
                f"has schema {attributes['schema_version']}", where=folder, expected=f"schema {SCHEMA_VERSION}"
            )
        return StudyRecord.model_validate_json(canonical_json(attributes["record"])), attributes
    except FileNotFoundError as error:
        raise CacheError("no such study", where=folder, do="build the cache again") from error
    except ValidationError as error:
        raise CacheError(
            "its record is not one of schema 1", where=folder / GROUP, do="build this study again"
        ) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CacheError(str(error), where=folder / GROUP, do="build this study again") from error


class Cache:
    """A cache of decoded studies, read-only and picklable. Opening it reads one small file, `ids` and `index` one more.

    Raises UsageError where there is no cache, CacheError where it is of another schema or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.attributes = read_cache_document(self.path)

    def __getstate__(self) -> dict:
        return {"path": self.path, "attributes": self.attributes}

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
        return read_record(self._folder(id))

    def study(self, id: str) -> StoredStudy:
        return StoredStudy(self._folder(id))

    def read(self, id: str, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w). Keep the study open instead where more than one window of it is read."""
        return self.study(id).read(z0, z1, box)

    def _folder(self, id: str) -> Path:
        folder = self.path / id
        if not is_valid_id(id) or not (folder / GROUP).is_file():
            if id in self.ids:
                raise CacheError("is in the index but not on disk", where=folder, do="run build-cache again")
            near = difflib.get_close_matches(id, self.ids, 1, 0.8)
            raise UsageError(f"no study {id}", where=self.path, do=f"did you mean {near[0]}?" if near else None)
        return folder

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"


def read_cache_document(path: Path) -> dict:
    """schema_version, pixel_hash, storage, files, digest: what the root of a cache says."""
    if not path.is_dir():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
            if path.parent.is_dir()
            else []
        )
        do = f"did you mean {path.parent / near[0]}?" if near else None
        raise UsageError("no such folder", where=path, expected="a cache made by preprocess build-cache", do=do)
    try:
        attributes = read_group(path / GROUP)
        found = attributes["schema_version"]
    except FileNotFoundError as error:
        raise UsageError("is no cache", where=path, expected="a cache made by preprocess build-cache") from error
    except (ValueError, KeyError, OSError) as error:
        raise CacheError(str(error), where=path / GROUP, do="run build-cache again") from error
    if "record" in attributes:
        raise UsageError("is one study of a cache", where=path, expected="the cache", do=f"did you mean {path.parent}?")
    if found != SCHEMA_VERSION:
        raise CacheError(
            f"has schema {found}", where=path, expected=f"schema {SCHEMA_VERSION}", do="build it again in a new folder"
        )
    return attributes
