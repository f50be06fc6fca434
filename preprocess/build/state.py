"""The state that a build leaves in CACHE/.build/ so that the next one skips what is done. It may be deleted."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema.columns import REPORT_COLUMNS
from cache_schema.documents import canonical_json, digest_of, write_whole
from cache_schema.layout import BUILD_FOLDER, PIXEL_HASH
from cache_schema.store_path import Place
from cache_schema.tables import content_digest
from cache_schema.verify import record_if_whole
from cache_schema.writer import CacheWriter
from preprocess.findings import Finding
from preprocess.headers.opened import FileState
from preprocess.headers.source_files import FolderState
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.study_plan import StudyPlan

RULES = 2
"""Version of the rules of selection, decoding, masks and flags. Raise it with whatever makes a build keep, refuse or say
something else of the same files: the next build of every cache then judges and decodes all studies again."""

DECODERS = (
    *("gdcm", "imagecodecs", "nibabel", "pydicom", "pylibjpeg"),
    *("pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm"),
)


@dataclass(frozen=True)
class StudyState:
    """What a build did about one study, for the next build to skip it.

    options: digest of the options that it was made with. sources: digest of the names, sizes and times of its files, ""
    while the study is being written. content_digest, segmentation_digest: those of the published record. findings: what
    reading it told. lost_box: it replaced a study that had a study_box.
    """

    options: str
    sources: str
    content_digest: str | None = None
    segmentation_digest: str | None = None
    lost_box: bool = False
    findings: tuple[Finding, ...] = ()

    @classmethod
    def load(cls, writer: CacheWriter, id: str) -> "StudyState | None":
        """The state of a study, or None where there is none that can be read."""
        found = _read_json(_state_path(writer, id))
        try:
            findings = tuple(Finding(*row) for row in found.pop("rows"))
            return cls(**found, findings=findings)
        except (TypeError, KeyError, ValueError):
            return None

    @classmethod
    def current(cls, writer: CacheWriter, id: str, options: str, sources: str) -> "StudyState | None":
        """The state of a study that need not be built, None of one that must."""
        found = cls.load(writer, id)
        return found if found is not None and found.is_current(writer, id, options, sources) else None

    def save(self, writer: CacheWriter, id: str) -> None:
        path = _state_path(writer, id)
        path.parent.mkdir(exist_ok=True)
        document = asdict(self)
        document["rows"] = [list(row.values())[: len(REPORT_COLUMNS)] for row in document.pop("findings")]  # no paths
        write_whole(path, canonical_json(document), beside=writer.build_folder)

    def is_current(self, writer: CacheWriter, id: str, options: str, sources: str) -> bool:
        """Whether the study in the cache is what these files and options would give, and all of its files are there."""
        if (self.options, self.sources) != (options, sources):
            return False
        record = record_if_whole(writer.path / id)
        digests = self.content_digest, self.segmentation_digest
        return record is not None and (record.content_digest, record.segmentation_digest) == digests


def options_digest(pseudonyms: Pseudonyms | None, rules: int = RULES) -> str:
    """Of all options that change what is kept of a study, and of the rules by which it is judged."""
    return digest_of({"pixel_hash": PIXEL_HASH, "rules": rules, "key": pseudonyms and pseudonyms.fingerprint})


def sources_digest(plan: StudyPlan, segmentation: Path | None, source: Place) -> str:
    """Of names (hashed, below the source), sizes and times of all files of a study, its segmentation included."""
    files = [(os.path.relpath(path, str(source)), size, mtime) for path, size, mtime in plan.files]
    if segmentation is not None:
        files.append(("segmentation", *_size_and_time(segmentation)))
    return _files_digest(files)


def tree_digest(files: Iterable[tuple[str, str]], states: Mapping[str, FileState] | None = None) -> str:
    """Of names, sizes and times of many files, each as (path, path below the source): a stat each.

    states: by path, of files in a store, where a listing has told them.
    """
    known = states or {}
    return _files_digest((name, *(known.get(path) or _size_and_time(path))) for path, name in files)


def decoders_digest() -> str:
    """Of the versions of what reads DICOM and NIfTI: a study refused before may be readable with other ones."""
    return digest_of({name: _version(name) for name in DECODERS})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _size_and_time(path: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _files_digest(files: Iterable[tuple[str, int, int]]) -> str:
    total = hashlib.sha256()
    for name, size, mtime in files:
        total.update(f"{hashlib.sha256(os.fsencode(name)).hexdigest()} {size} {mtime}\n".encode())
    return total.hexdigest()


def studies_digest(index: pd.DataFrame) -> str:
    """Of which studies a cache has and what is in them; of nothing that set-boxes or labels change."""
    return content_digest(index[["id", "content_digest", "segmentation_digest"]])


def load_finished(writer: CacheWriter, fingerprint: str) -> dict[str, Any] | None:
    """What `save_finished` kept, if the whole build was the same."""
    found = _read_json(_finished_path(writer))
    return found if found.get("fingerprint") == fingerprint else None


def save_finished(writer: CacheWriter, fingerprint: str, **summary: int | str) -> None:
    document = {"fingerprint": fingerprint, **summary}
    write_whole(_finished_path(writer), canonical_json(document), beside=writer.build_folder)


def clear_finished(writer: CacheWriter) -> None:
    """Call it before anything is changed: a build that is stopped, or has to be tried again, is not finished."""
    _finished_path(writer).unlink(missing_ok=True)


def load_source(cache: Place) -> tuple[str, dict[str, FolderState]]:
    """The digest of a source's files and the state of its folders, as `save_source` kept them; ("", {}) where it did not."""
    found = _read_json(_source_path(cache / BUILD_FOLDER))
    try:
        return found["files"], {name: FolderState(*state) for name, state in found["folders"].items()}
    except (AttributeError, KeyError, TypeError):
        return "", {}


def save_source(writer: CacheWriter, files: str, folders: Mapping[str, FolderState]) -> None:
    """files: digest of all of them. Nothing is written where that is kept already."""
    if load_source(writer.path) != (files, folders):
        data = canonical_json({"files": files, "folders": folders})
        write_whole(_source_path(writer.build_folder), data, beside=writer.build_folder)


def _source_path(build_folder: Place) -> Place:
    return build_folder / "source.json"


def _finished_path(writer: CacheWriter) -> Place:
    return writer.build_folder / "finished.json"


def _state_path(writer: CacheWriter, id: str) -> Place:
    return writer.build_folder / "studies" / f"{id}.json"


def _read_json(path: Place) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
