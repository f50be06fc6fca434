"""A smaller cache: of every study what training cuts around its box, at native resolution and in native coordinates."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema import Cache, CacheWriter, Study, StudyBox, StudyRecord
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import REPORT
from cache_schema.machine import this_machine
from cache_schema.store import read_study_document
from cache_schema.store_path import Place, each, place_of
from cache_schema.study import Box, square_around
from cache_schema.tables import read_table
from cache_schema.verify import record_if_whole
from cache_schema.writer import boxes_of
from preprocess.build.report import report_frame
from preprocess.findings import Finding
from preprocess.labels import LabelsTable
from preprocess.progress import progress_over, say


@dataclass(frozen=True)
class CropResult:
    """studies: in the smaller cache; without_box: ids left out; pixels: grey values before and after."""

    studies: int
    without_box: tuple[str, ...]
    pixels: tuple[int, int]


class Part:
    """The pixels of a study within a part of its frame."""

    def __init__(self, study: Study, region: Box):
        self.study, self.region = study, region

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w); `box` in pixels of the part."""
        left, top, right, bottom = self.region
        x0, y0, x1, y1 = box or (0, 0, right - left, bottom - top)
        return self.study.read(z0, z1, (x0 + left, y0 + top, x1 + left, y1 + top))


def crop_cache(
    cache: str | Place,
    out: str | Place,
    *,
    boxes: str | Path | None = None,
    margin: int = 0,
    shard: int | None = None,
    tell: Callable[[str], None] = say,
) -> CropResult:
    """Write a cache that holds a part of each study's frame, all slices of it; what is there already is skipped.

    The part is what training cuts (the square around the box), or the box and `margin` pixels on every side where that
    reaches further, within the frame. boxes: a study_boxes table; without it the boxes published in the cache. The new
    records carry the box they were cut to, the part, and the whole study's content digest. Studies without a box are
    left out, and the report says so.
    Raises UsageError where no study has a box, a box lies outside what its study holds, or `out` holds something else.
    """
    source, out = Cache(cache), place_of(out)
    if out.resolve() == source.path.resolve():
        raise UsageError("is the cache itself", where=out, expected="a new folder")
    box_of = _boxes(source, boxes)
    known = set(source.ids)
    boxed = [id for id in box_of if id in known]
    parts = each(lambda id: _Cut.of(source.study(id), box_of[id], margin), boxed, source.path)
    if not parts:
        do = "give boxes with preprocess set-boxes, or a table with --boxes" if boxes is None else None
        raise UsageError("no study of this cache has a box", where=source.path, do=do)
    writer = CacheWriter(out, shard)
    with writer.locked(lambda: tell(f"another process is changing {out}; waiting for it")):
        writer.sweep()
        there = writer.studies()
        if any(document[0].origin is None for document in each(read_study_document, there, out)):
            raise UsageError("is a cache of whole studies", where=out, expected="a new folder, or a cropped cache")
        kept = {part.record.id for part in parts}
        each(writer.remove, [folder.name for folder in there if folder.name not in kept], out)
        is_there = each(lambda part: part.is_there(writer), parts, out)
        _publish(writer, [part for part, found in zip(parts, is_there, strict=True) if not found])
        without = tuple(id for id in source.ids if id not in kept)
        _finish(source, writer, without)
    before = source.index.set_index("id").loc[sorted(kept), "pixels"].sum()
    return CropResult(len(parts), without, (int(before), int(Cache(out).index["pixels"].sum())))


def _boxes(source: Cache, table: str | Path | None) -> dict[str, StudyBox]:
    if table is not None:
        return boxes_of(read_table(table))
    ids = list(source.index["id"][source.index["x0"].notna()])
    records = each(source.record, ids, source.path)
    return {record.id: record.study_box for record in records if record.study_box is not None}


@dataclass(frozen=True)
class _Cut:
    """A study to be cut, and what its record will say."""

    whole: Study
    record: StudyRecord

    @classmethod
    def of(cls, study: Study, box: StudyBox, margin: int) -> "_Cut":
        record = study.record
        left, top, right, bottom = record.stored_region
        x0, y0, x1, y1 = square_around((box.x0, box.y0, box.x1, box.y1), record.rows, record.columns)
        x0, y0 = max(left, min(x0, box.x0 - margin)), max(top, min(y0, box.y0 - margin))
        x1, y1 = min(right, max(x1, box.x1 + margin)), min(bottom, max(y1, box.y1 + margin))
        parent = record.origin.parent if record.origin else record.content_digest
        origin = {"x0": x0, "y0": y0, "rows": max(1, y1 - y0), "columns": max(1, x1 - x0), "parent": parent}
        changed = {"origin": origin, "study_box": box.model_dump(), "content_digest": None}
        try:
            return cls(study, StudyRecord.model_validate(record.model_dump() | changed))
        except ValueError as error:
            raise UsageError("its box lies outside its stored region", where=study.id) from error

    def is_there(self, writer: CacheWriter) -> bool:
        """Whether an earlier run has published it and all of its files are there."""
        record = record_if_whole(writer.path / self.record.id)
        return record is not None and record.model_copy(update={"content_digest": None}) == self.record

    def publish(self, writer: CacheWriter) -> StudyRecord:
        whole, pixels = self.whole, Part(self.whole, self.record.stored_region)
        labels = {"slice_box": whole.slice_box, "vertebra_ratio": whole.vertebra_ratio}
        return writer.publish(Study(self.record, whole.z, whole.slice_number, pixels, **labels))


def _publish(writer: CacheWriter, parts: list[_Cut]) -> None:
    # threads: decoding, hashing and flushing all release the GIL
    with (
        ThreadPoolExecutor(this_machine().cores) as pool,
        progress_over(studies=len(parts), slices=sum(part.record.slices for part in parts)) as steps,
    ):
        waiting = [pool.submit(part.publish, writer) for part in parts]
        try:
            for done in as_completed(waiting):
                steps.advance(studies=1, slices=done.result().slices)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _report_of(source: Cache) -> list[Finding]:
    try:
        table = pd.read_csv(BytesIO((source.path / REPORT).read_bytes()), dtype=str, keep_default_na=False)
        return [Finding(*row) for row in table.itertuples(index=False)]
    except (ValueError, TypeError) as error:
        raise CacheError(
            "is not the report of a build", where=source.path / REPORT, do="run build-cache again"
        ) from error


def _finish(source: Cache, writer: CacheWriter, without: tuple[str, ...]) -> None:
    """Labels and report of the studies kept, as they are in the whole cache."""
    kept = {folder.name for folder in writer.studies()}
    findings = [finding for finding in _report_of(source) if finding.id in kept]
    report = report_frame([*findings, *(Finding.of_study(id, "refused", "no_box") for id in without)])
    labels = LabelsTable.read(source.path)
    if labels is None:
        writer.finish(report=report)
        return
    replace(labels, frame=labels.frame[labels.frame["id"].isin(kept)]).write(writer, report)
