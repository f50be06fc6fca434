"""Checks every file, record, digest and row of a cache, and names what is wrong."""

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from cache_schema.arrays import is_as_listed
from cache_schema.columns import index_frame, index_row, labels_frame
from cache_schema.documents import checksum
from cache_schema.errors import CacheError, CspineError, reason_of
from cache_schema.layout import (
    BUILD_FOLDER,
    GROUP,
    INDEX,
    LABELS,
    PIXEL_HASH,
    REPORT,
    STORAGE,
    array_document,
    array_shapes,
    is_valid_id,
    study_files,
)
from cache_schema.store import StoredStudy, read_cache_document, read_study_document
from cache_schema.study import ContentDigest, StudyRecord, blocks, segmentation_digest, value_range
from cache_schema.tables import content_digest, read_table, table_meta


def verify(path: str | Path, sample: float = 1.0) -> list[str]:
    """Everything that is wrong with a cache, one line each, the study or file named first; [] where all is well.

    Names and sizes of all files, records, and index are always checked; bytes and decoded pixels of a share `sample` of the studies, chosen
    at random. Raises UsageError where there is no cache, CacheError where its root does not check.
    """
    path = Path(path)
    root = read_cache_document(path)
    problems = _check_root(path, root)
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name != BUILD_FOLDER)
    chosen = set(random.sample(folders, min(len(folders), math.ceil(sample * len(folders)))))
    rows = []
    for folder in folders:
        try:
            record, attributes = read_study_document(folder)
        except CspineError as error:
            problems.append(f"{folder.name}: {error.what}")
            continue
        try:
            found = _check_study(folder, record, attributes, deep=folder in chosen)
        except OSError as error:
            found = [_unread(error, folder)]
        problems.extend(f"{folder.name}: {problem}" for problem in found)
        if record.id != folder.name:
            continue
        rows.append(index_row(record, attributes))
    return problems + _check_index(path, index_frame(rows))


def record_if_whole(folder: Path) -> StudyRecord | None:
    """The record of a study whose files are all there, by names and lengths; else None."""
    try:
        record, attributes = read_study_document(folder)
    except CacheError:
        return None
    return None if changed_files(folder, attributes["files"]) else record


def changed_files(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """Files below a study's folder that are missing, foreign or of another length than listed. A stat for each."""
    try:
        found = _sizes(folder)
    except OSError as error:
        return [_unread(error, folder)]
    problems = [f"{name} is missing" for name in sorted(files.keys() - found.keys())]
    problems += [f"{name} is foreign" for name in sorted(found.keys() - files.keys())]
    for name in sorted(files.keys() & found.keys()):
        if found[name] != files[name]["bytes"]:
            problems.append(f"{name} has {found[name]} bytes, not {files[name]['bytes']}")
    return problems


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes by name of all files below a study's folder but its record, -1 for links."""
    found = {}

    def stop(error: OSError) -> None:
        raise error

    for where, _, names in os.walk(folder, onerror=stop):
        for name in names:
            file = Path(where, name)
            found[file.relative_to(folder).as_posix()] = -1 if file.is_symlink() else file.stat().st_size
    found.pop(GROUP, None)
    return found


def _unread(error: OSError, folder: Path) -> str:
    """Names the file below a study's folder, and the reason."""
    name = os.path.relpath(error.filename, folder) if isinstance(error.filename, str | Path) else ""
    return f"{name if name not in ('', '.') else 'its folder'} cannot be read ({reason_of(error)})"


def _check_root(path: Path, root: dict[str, Any]) -> list[str]:
    problems = []
    if root["pixel_hash"] != PIXEL_HASH:
        problems.append(f"{GROUP}: made by other pixel rules")
    if root["storage"] != STORAGE:
        problems.append(f"{GROUP}: storage is described otherwise than schema 1 has it")
    there = {entry.name for entry in path.iterdir() if not entry.is_dir()}
    problems += [f"{name}: foreign" for name in sorted(there - {GROUP, *root["files"]})]
    for name in (INDEX, REPORT):
        if name not in root["files"]:
            problems.append(f"{name}: not listed in {GROUP}")
    for name, listed in sorted(root["files"].items()):
        try:
            if name not in there:
                problems.append(f"{name}: missing")
            elif checksum((path / name).read_bytes()) != listed:
                problems.append(f"{name}: changed")
        except OSError as error:
            problems.append(f"{name}: cannot be read ({reason_of(error)})")
    if not problems and LABELS in there:
        problems += _check_labels(path / LABELS)
    return problems


def _check_labels(path: Path) -> list[str]:
    try:
        table = read_table(path)
        labels_frame(table)
        return [] if table_meta(path)["digest"] == content_digest(table) else [f"{LABELS}: does not match its digest"]
    except (CspineError, ValueError, KeyError) as error:
        return [f"{LABELS}: {error}"]


def _check_study(folder: Path, record: StudyRecord, attributes: dict[str, Any], *, deep: bool) -> list[str]:
    if not is_valid_id(folder.name) or record.id != folder.name:
        return [f"the record is that of {record.id}"]
    segmented = record.segmentation_digest is not None
    slices, rows, columns = record.shape
    size = rows, columns, slices
    if set(attributes["files"]) != set(study_files(*size, segmented=segmented)):
        return ["the list of files is not that of a study of its size"]
    problems = changed_files(folder, attributes["files"])
    if attributes["pixel_hash"] != PIXEL_HASH:
        problems.append("made by other pixel rules")
    shapes = array_shapes(*size, segmented=segmented)
    for name, shape in shapes.items():
        file = folder / name / GROUP
        if file.is_file() and file.read_bytes() != array_document(name, shape):
            problems.append(f"{name}/{GROUP} is not what schema 1 has for this shape")
    if not deep or problems:
        return problems
    for name, listed in sorted(attributes["files"].items()):
        if not is_as_listed(name, (folder / name).read_bytes(), listed):
            problems.append(f"{name} changed")
    return problems or _check_content(folder, record)


def _check_content(folder: Path, record: StudyRecord) -> list[str]:
    try:
        study, problems = StoredStudy(folder), []
        digest, ranges = ContentDigest(study), []
        for block in blocks(study):
            digest.update(block)
            ranges.append(value_range(block))
        if digest.hexdigest() != record.content_digest:
            problems.append("pixels or geometry do not match the content digest")
        if not np.array_equal(np.concatenate(ranges), study.value_range):
            problems.append("value_range is not that of the pixels")
        if segmentation_digest(study) != record.segmentation_digest:
            problems.append("slice_box or vertebra_ratio do not match the segmentation digest")
        if (np.diff(study.z) >= 0).any():
            problems.append("z does not decrease")
        return problems
    except CspineError as error:
        return [error.what]


def _check_index(path: Path, expected: Any) -> list[str]:
    try:
        found = read_table(path / INDEX)
        if content_digest(found) == content_digest(expected):
            return []
        there, listed = set(expected["id"]), set(found["id"])
    except (CspineError, KeyError) as error:
        return [f"{INDEX}: {error}"]
    problems = [f"{id}: in the index but not on disk" for id in sorted(listed - there)]
    problems += [f"{id}: on disk but not in the index" for id in sorted(there - listed)]
    if list(found.columns) != list(expected.columns):
        return [*problems, f"{INDEX}: has other columns than schema 1"]
    both = sorted(there & listed)
    old, new = (frame.set_index("id").loc[both].to_dict("index") for frame in (found, expected))
    differs = [id for id in both if str(old[id]) != str(new[id])]
    problems += [f"{id}: its row in the index is not that of its record" for id in differs]
    return problems or [f"{INDEX}: its rows are not in order"]
