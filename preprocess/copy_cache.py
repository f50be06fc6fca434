"""Copies a cache between folders, stores and zip files, file by file, and checks the copy."""

import os
import secrets
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache_schema import Cache, CacheWriter
from cache_schema.arrays import checked_files
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import GROUP, LABELS, REPORT
from cache_schema.store import read_study_document
from cache_schema.store_path import Place, StorePath, each, place_of
from cache_schema.stores import ZIP
from cache_schema.verify import record_if_whole, verify
from preprocess.progress import progress_over, say

AT_ONCE = 4
"""studies, of which each also writes several files at once"""


@dataclass(frozen=True)
class CopyResult:
    """studies: in the copy; copied: by this call; problems: what verify says of the copy."""

    studies: int
    copied: int
    problems: list[str]


def copy_cache(
    cache: str | Place, out: str | Place, *, shard: int | None = None, tell: Callable[[str], None] = say
) -> CopyResult:
    """Copy a cache, or go on with a copy that was stopped, then verify it. What is there already and equal is left.

    out: a folder, the address of a store, or the name of a zip file, which is written whole. shard: slices a file in the
    copy (`CacheWriter`); by default it has the files of the cache.
    Raises UsageError where `out` holds something else, or studies that the cache has not.
    """
    source = Cache(cache)
    if isinstance(out, str | Path) and str(out).endswith(ZIP) and "://" not in str(out):
        return _copy_to_zip(source, Path(out), shard)
    target = place_of(out)
    if target.resolve() == source.path.resolve():
        raise UsageError("is the cache itself", where=target, expected="a new place")
    own = source.attributes["storage"].get("shard_slices")
    is_new = not (target / GROUP).is_file()
    writer = CacheWriter(target, shard if shard is not None else own if is_new else None)
    with writer.locked(lambda: tell(f"another process is changing {target}; waiting for it")):
        writer.sweep()
        if foreign := sorted({folder.name for folder in writer.studies()} - set(source.ids)):
            what = f"holds {len(foreign)} studies that {source.path} does not, first {foreign[0]}"
            raise UsageError(what, where=target, expected="a new place, or an earlier copy")
        there = each(partial(_is_there, source, writer), source.ids, writer.path)
        missing = [id for id, is_there in zip(source.ids, there, strict=True) if not is_there]
        tell(f"{len(source.ids)} studies: {len(source.ids) - len(missing)} copied already, {len(missing)} to copy")
        _copy_studies(source, writer, missing, own)
        for name in (LABELS, REPORT):
            writer.write_file(name, (source.path / name).read_bytes() if (source.path / name).is_file() else None)
        writer.finish()
    return CopyResult(len(source.ids), len(missing), verify(target))


def _is_there(source: Cache, writer: CacheWriter, id: str) -> bool:
    record = record_if_whole(writer.path / id)
    return record is not None and record == source.record(id)


def _copy_studies(source: Cache, writer: CacheWriter, ids: list[str], shard: int | None) -> None:
    slices = source.index.set_index("id")["slices"]

    def copy(id: str) -> int:
        study = source.study(id)  # compared with the index
        if writer.shard == shard:
            writer.publish_copy(source.path / id)
        else:
            writer.publish(study)
        return study.record.slices

    with ThreadPoolExecutor(AT_ONCE) as pool, progress_over(studies=len(ids), slices=int(slices[ids].sum())) as steps:
        waiting = [pool.submit(copy, id) for id in ids]
        try:
            for done in as_completed(waiting):
                steps.advance(studies=1, slices=done.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy_to_zip(source: Cache, out: Path, shard: int | None) -> CopyResult:
    """Whole or not at all: a zip cannot be changed."""
    if shard not in (None, source.attributes["storage"].get("shard_slices")):
        raise UsageError("has the files of the cache", where=out, do="leave --shard out, or copy to a store")
    if out.exists():
        raise UsageError("is there already", where=out, expected="a new zip file")
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    slices = int(source.index["slices"].sum())
    try:
        with zipfile.ZipFile(part, "x") as archive, progress_over(studies=len(source.ids), slices=slices) as steps:
            for id in source.ids:
                record = source.study(id).record
                _, attributes = read_study_document(source.path / id)
                for name, data in checked_files(source.path / id, attributes["files"]):
                    archive.writestr(_entry(f"{id}/{name}"), data)
                archive.writestr(_entry(f"{id}/{GROUP}"), (source.path / id / GROUP).read_bytes())
                steps.advance(studies=1, slices=record.slices)
            for name in (*source.attributes["files"], GROUP):
                archive.writestr(_entry(name), (source.path / name).read_bytes())
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        if problems := verify(StorePath(str(part))):
            raise CacheError(f"the copy does not check: {problems[0]}", where=out, do="verify the cache")
        os.replace(part, out)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(out)
        raise
    return CopyResult(len(source.ids), len(source.ids), [])


def _entry(name: str) -> zipfile.ZipInfo:
    """Stored, without a time: the same cache gives the same zip."""
    return zipfile.ZipInfo(name)
