"""What a build remembers so that the next one skips what is done. It lies in CACHE/.build/, is no part of the cache, and may be deleted."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from cache_schema.documents import canonical_json, digest_of, write_whole
from cache_schema.errors import CacheError
from cache_schema.layout import PIXEL_HASH
from cache_schema.store import read_study_document
from cache_schema.tables import content_digest
from cache_schema.verify import changed_files
from cache_schema.writer import CacheWriter
from preprocess.build.report import Row
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.study_plan import StudyPlan

RULES = 2
"""Version of the rules of selection, decoding, masks and flags. Raise it with whatever makes a build keep, refuse or say
something else of the same files: the next build of every cache then judges and decodes all studies again."""

DECODERS = (
    "gdcm",
    "imagecodecs",
    "nibabel",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
)


@dataclass(frozen=True)
class Memory:
    """What was done about one study.

    sources: digest of the names, sizes and times of its files, "" while it is being written. content_digest,
    segmentation_digest: of what was published. rows: what reading it had to say. lost_box: it replaced a study that had
    a study_box.
    """

    options: str
    sources: str
    content_digest: str | None = None
    segmentation_digest: str | None = None
    lost_box: bool = False
    rows: tuple[Row, ...] = ()


def options_digest(pseudonyms: Pseudonyms | None, rules: int = RULES) -> str:
    """Of all options that change what is kept of a study, and of the rules by which it is judged."""
    return digest_of({"pixel_hash": PIXEL_HASH, "rules": rules, "key": pseudonyms and pseudonyms.fingerprint})


def sources_digest(plan: StudyPlan, segmentation: Path | None, source: Path) -> str:
    """Of names (hashed, below the source), sizes and times of all files of a study, its segmentation included."""
    files = [(os.path.relpath(path, source), size, mtime) for path, size, mtime in plan.files]
    if segmentation is not None:
        files.append(("segmentation", *_size_and_time(segmentation)))
    return _files_digest(files)


def tree_digest(files: Iterable[Path], source: Path) -> str:
    """Of names, sizes and times of many files: a stat each."""
    return _files_digest((os.path.relpath(path, source), *_size_and_time(path)) for path in files)


def decoders_digest() -> str:
    """Of the versions of what reads DICOM and NIfTI: a study refused before may be readable with other ones."""
    return digest_of({name: _version(name) for name in DECODERS})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _size_and_time(path: Path) -> tuple[int, int]:
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


def recall(writer: CacheWriter, id: str) -> Memory | None:
    """What is remembered of a study, or None."""
    found = _read_json(_memory_path(writer, id))
    try:
        return Memory(**found | {"rows": tuple(Row(*row) for row in found["rows"])})
    except (TypeError, KeyError, ValueError):
        return None


def remember(writer: CacheWriter, id: str, memory: Memory) -> None:
    path = _memory_path(writer, id)
    path.parent.mkdir(exist_ok=True)
    rows = [list(asdict(row).values()) for row in memory.rows]
    write_whole(path, canonical_json(asdict(memory) | {"rows": rows}), beside=writer.build_folder)


def is_done(writer: CacheWriter, id: str, memory: Memory | None, options: str, sources: str) -> bool:
    """Whether the study in the cache is what these files and options would give, and all of its files are there."""
    if memory is None or (memory.options, memory.sources) != (options, sources):
        return False
    try:
        record, attributes = read_study_document(writer.path / id)
    except CacheError:
        return False
    kept = (record.content_digest, record.segmentation_digest) == (memory.content_digest, memory.segmentation_digest)
    return kept and not changed_files(writer.path / id, attributes["files"])


def studies_digest(index: pd.DataFrame) -> str:
    """Of which studies a cache has and what is in them; of nothing that set-boxes or labels change."""
    return content_digest(index[["id", "content_digest", "segmentation_digest"]])


def recall_finish(writer: CacheWriter, fingerprint: str) -> dict | None:
    """What `remember_finish` kept, if the whole build was the same."""
    found = _read_json(writer.build_folder / "finished.json")
    return found if found.get("fingerprint") == fingerprint else None


def remember_finish(writer: CacheWriter, fingerprint: str, **summary: int | str) -> None:
    document = {"fingerprint": fingerprint, **summary}
    write_whole(writer.build_folder / "finished.json", canonical_json(document), beside=writer.build_folder)


def forget_finish(writer: CacheWriter) -> None:
    """Before anything is changed: what a build that is stopped, or has to be tried again, leaves behind is not finished."""
    (writer.build_folder / "finished.json").unlink(missing_ok=True)


def _memory_path(writer: CacheWriter, id: str) -> Path:
    return writer.build_folder / "studies" / f"{id}.json"


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
