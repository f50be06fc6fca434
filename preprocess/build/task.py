"""What a worker does: turn one planned study into a published one."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from cache_schema.errors import CspineError, StudyRefused, reason_of
from cache_schema.writer import CacheWriter
from preprocess.build.report import BUILD_REASONS, PASSING_REASONS, Row
from preprocess.build.state import Memory, recall, remember
from preprocess.build.watchdog import STALL_SECONDS, GuardedPixels, deadline
from preprocess.findings import Finding
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.study_plan import StudyPlan
from preprocess.study_source import open_study


@dataclass(frozen=True)
class StudyTask:
    """One study to make. id: what it is called in the cache. options, sources: for whoever asks later whether it is done."""

    id: str
    plan: StudyPlan
    segmentation: Path | None
    cache: Path
    pseudonyms: Pseudonyms | None
    options: str
    sources: str


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `refused` is None where the study was published."""

    refused: Row | None
    rows: tuple[Row, ...]


def make_study(task: StudyTask) -> Outcome:
    """Decode and publish. Never raises: one failing study must not stop the others, and a traceback would show names of files."""
    cv2.setNumThreads(1)
    try:
        return _make_study(task)
    except StudyRefused as refused:
        return Outcome(Row(task.id, refused.file or "", "refused", refused.reason, refused.what), ())
    except CspineError as error:
        return Outcome(Row(task.id, "", "refused", "failed", error.what), ())
    except Exception as error:
        why = reason_of(error) if isinstance(error, OSError) else type(error).__name__
        message = f"{BUILD_REASONS['failed']} ({why})"
        return Outcome(Row(task.id, "", "refused", "failed", message), ())


def _make_study(task: StudyTask) -> Outcome:
    writer = CacheWriter(task.cache)
    with deadline(STALL_SECONDS):
        study, findings = open_study(task.plan, task.segmentation)
    if task.pseudonyms is not None:
        study = task.pseudonyms.study(study)
    study.pixels = GuardedPixels(study.pixels)
    rows = _rows(task, findings)
    memory = Memory(task.options, "", lost_box=_loses_box(writer, task.id), rows=rows)
    if memory.lost_box:
        remember(writer, task.id, memory)
    record = writer.publish(study)
    rows += _rows(task, study.pixels.findings())
    done = {"content_digest": record.content_digest, "segmentation_digest": record.segmentation_digest}
    passing = any(row.reason in PASSING_REASONS for row in rows)  # the next build tries again
    remember(writer, task.id, replace(memory, sources="" if passing else task.sources, rows=rows, **done))
    return Outcome(None, rows)


def _rows(task: StudyTask, findings: list[Finding]) -> tuple[Row, ...]:
    return tuple(replace(Row.of(finding, paths=False), id=task.id) for finding in findings)


def _loses_box(writer: CacheWriter, id: str) -> bool:
    """Whether the study that is about to be replaced has a study_box, or one before it had."""
    earlier = recall(writer, id)
    return (earlier is not None and earlier.lost_box) or writer.has_box(id)
