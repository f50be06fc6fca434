"""What a worker does: turn one planned study into a published one."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2

from cache_schema.store_path import Place, StorePath
from cache_schema.stores import StoreError
from cache_schema.writer import CacheWriter
from preprocess.build.state import StudyState
from preprocess.build.watchdog import STALL_SECONDS, GuardedPixels, deadline
from preprocess.findings import TRANSIENT_REASONS, Finding
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.study_plan import StudyPlan
from preprocess.study_source import open_study


@dataclass(frozen=True)
class StudyTask:
    """One study to build. id: its id in the cache. options, sources: digests for the study's state."""

    id: str
    plan: StudyPlan
    segmentation: Place | None
    cache: Place
    pseudonyms: Pseudonyms | None
    options: str
    sources: str


@dataclass(frozen=True)
class TaskResult:
    """What became of a task. `refused` is None where the study is published; is_new: by this task, not by another build.

    store_error: the store cannot be reached or refuses, which is no fault of the study.
    """

    refused: Finding | None
    findings: tuple[Finding, ...] = ()
    is_new: bool = True
    store_error: StoreError | None = None


def build_study(task: StudyTask) -> TaskResult:
    """Decode and publish. Never raises: a failing study must not stop the others, and tracebacks show names of files."""
    cv2.setNumThreads(1)
    try:
        return _build_study(task)
    except StoreError as error:
        return TaskResult(None, store_error=error)
    except Exception as error:
        return TaskResult(Finding.of_error(task.id, error))


def _build_study(task: StudyTask) -> TaskResult:
    writer = CacheWriter(task.cache)
    if isinstance(task.cache, StorePath):  # nothing is locked there: another build may have been here since
        there = StudyState.current(writer, task.id, task.options, task.sources)
        if there is not None:
            return TaskResult(None, there.findings, is_new=False)
    with deadline(STALL_SECONDS):
        study, found = open_study(task.plan, task.segmentation)
    if task.pseudonyms is not None:
        study = task.pseudonyms.study(study)
    study.pixels = pixels = GuardedPixels(study.pixels)
    findings = _named(task, found)
    state = StudyState(task.options, "", lost_box=_loses_box(writer, task.id), findings=findings)
    if state.lost_box:
        state.save(writer, task.id)
    record = writer.publish(study)
    findings += _named(task, pixels.findings())
    transient = any(finding.reason in TRANSIENT_REASONS for finding in findings)  # the next build tries again
    state = replace(
        state,
        sources="" if transient else task.sources,
        content_digest=record.content_digest,
        segmentation_digest=record.segmentation_digest,
        findings=findings,
    )
    state.save(writer, task.id)
    return TaskResult(None, findings)


def _named(task: StudyTask, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings under the study's id in the cache."""
    return tuple(replace(finding, id=task.id) for finding in findings)


def _loses_box(writer: CacheWriter, id: str) -> bool:
    """Whether the study that is about to be replaced has a study_box, or one before it had."""
    earlier = StudyState.load(writer, id)
    return (earlier is not None and earlier.lost_box) or writer.has_box(id)
