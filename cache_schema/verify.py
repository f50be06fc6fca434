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
    array_document,
    array_shapes,
    is_valid_id,
    schema_of,
    storage_of,
    study_files,
)
from cache_schema.store import StoredStudy, read_cache_document, read_study_document
from cache_schema.store_kinds import DamagedFile
from cache_schema.store_path import Place, StorePath, each, place_of
from cache_schema.stores import StoreError
from cache_schema.study import ContentDigest, StudyRecord, blocks, segmentation_digest, value_range
from cache_schema.tables import content_digest, read_table, table_meta


def verify(path: str | Place, sample: float = 1.0) -> list[str]:
    """Everything that is wrong with a cache, one line each, the study or file named first; [] where all is well.

    Names and sizes of all files, records, and index are always checked; bytes and decoded pixels of a share `sample` of the studies, chosen
    at random. Raises UsageError where there is no cache, CacheError where its root does not check.
    """
    path = place_of(path)
    root = read_cache_document(path)
    problems = _check_root(path, root)
    folders = _studies(path)
    chosen = set(random.sample(folders, min(len(folders), math.ceil(sample * len(folders)))))
    found = each(lambda folder: _look_at(folder, root, deep=folder in chosen), folders, path)
    for folder, (_, wrong) in zip(folders, found, strict=True):
        problems.extend(f"{folder.name}: {problem}" for problem in wrong)
    return problems + _check_index(path, index_frame([row for row, _ in found if row is not None]))


def _studies(path: Place) -> list[Place]:
    """Folders that should be studies; by the index where a store cannot be listed."""
    if isinstance(path, StorePath) and not path.is_listed:
        return [path / id for id in read_table(path / INDEX)["id"]]
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name != BUILD_FOLDER)


def _look_at(folder: Place, root: dict[str, Any], *, deep: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """A study's row of the index, None where its record is not its own, and what is wrong with it."""
    try:
        record, attributes = read_study_document(folder)
    except StoreError:
        raise
    except CspineError as error:
        return None, [error.what]
    try:
        problems = _check_study(folder, record, attributes, root, deep=deep)
    except OSError as error:
        problems = [_unread(error, folder)]
    return index_row(record, attributes) if record.id == folder.name else None, problems


def record_if_whole(folder: Place) -> StudyRecord | None:
    """The record of a study whose files are all there, by names and lengths; else None."""
    try:
        record, attributes = read_study_document(folder)
    except CacheError:
        return None
    return None if changed_files(folder, attributes["files"]) else record


def changed_files(folder: Place, files: dict[str, dict[str, Any]]) -> list[str]:
    """Files below a study's folder that are missing, foreign or of another length than listed. A stat for each; in a store
    one listing, and nothing where it cannot be listed."""
    try:
        if isinstance(folder, Path):
            found = _sizes(folder)
        elif folder.is_listed:
            found = folder.sizes()
            found.pop(GROUP, None)
        else:
            return []
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


def _unread(error: OSError, folder: Place) -> str:
    """Names the file below a study's folder, and the reason."""
    name = ""
    if isinstance(error.filename, str | Path) and isinstance(folder, Path):
        name = os.path.relpath(error.filename, folder)
    return f"{name if name not in ('', '.') else 'its folder'} cannot be read ({reason_of(error)})"


def _check_root(path: Place, root: dict[str, Any]) -> list[str]:
    problems = []
    if root["pixel_hash"] != PIXEL_HASH:
        problems.append(f"{GROUP}: made by other pixel rules")
    if root["storage"] != storage_of(root["storage"].get("shard_slices")):
        problems.append(f"{GROUP}: storage is described otherwise than the schema has it")
    if isinstance(path, StorePath) and not path.is_listed:
        there = {GROUP, *root["files"]}
    else:
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


def _check_labels(path: Place) -> list[str]:
    try:
        table = read_table(path)
        labels_frame(table)
        return [] if table_meta(path)["digest"] == content_digest(table) else [f"{LABELS}: does not match its digest"]
    except (CspineError, ValueError, KeyError) as error:
        return [f"{LABELS}: {error}"]


def _check_study(
    folder: Place, record: StudyRecord, attributes: dict[str, Any], root: dict[str, Any], *, deep: bool
) -> list[str]:
    if not is_valid_id(folder.name) or record.id != folder.name:
        return [f"the record is that of {record.id}"]
    segmented, shard = record.segmentation_digest is not None, attributes.get("shard_slices")
    slices, rows, columns = record.shape
    size = rows, columns, slices
    if shard != root["storage"].get("shard_slices"):
        return ["its shards are not those of the cache"]
    if set(attributes["files"]) != set(study_files(*size, segmented=segmented, shard=shard)):
        return ["the list of files is not that of a study of its size"]
    problems = changed_files(folder, attributes["files"])
    if attributes["pixel_hash"] != PIXEL_HASH:
        problems.append("made by other pixel rules")
    shapes = array_shapes(*size, segmented=segmented)
    for name, shape in shapes.items():
        listed = attributes["files"][f"{name}/{GROUP}"]
        expected = array_document(name, shape, shard)
        file = folder / name / GROUP
        if checksum(expected) != listed or (
            isinstance(file, Path) and file.is_file() and file.read_bytes() != expected
        ):
            problems.append(f"{name}/{GROUP} is not what schema {schema_of(shard)} has for this shape")
    if not deep or problems:
        return problems
    for name, listed in sorted(attributes["files"].items()):
        try:
            if not is_as_listed(name, (folder / name).read_bytes(), listed):
                problems.append(f"{name} changed")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except DamagedFile:
            problems.append(f"{name} changed")
    return problems or _check_content(folder, record)


def _check_content(folder: Place, record: StudyRecord) -> list[str]:
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
    except StoreError:
        raise
    except CspineError as error:
        return [error.what]


def _check_index(path: Place, expected: Any) -> list[str]:
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
