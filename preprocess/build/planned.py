"""Which studies a build has to decode: all that the header pass found, planned by the workers, less those that are there."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from cache_schema.store_path import Place, StorePath, each
from preprocess.build.isolated_task import Died
from preprocess.build.state import StudyState, sources_digest
from preprocess.findings import Finding
from preprocess.headers.inventory import Inventory
from preprocess.headers.packed import unpack
from preprocess.masks.names import find_segmentation
from preprocess.progress import progress_over
from preprocess.series.planning import Judged, Planning, Unplanned, judge
from preprocess.series.study_plan import StudyPlan

if TYPE_CHECKING:
    from preprocess.build.job import BuildJob

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]
"""calls a function with each of many tasks, and gives (number of the task, its result) as they come"""
STATES_AT_ONCE = 32
"""of studies, that are asked for together in a store"""
BYTES_A_TASK = 1 << 14
"""of packed headers: some five hundred, so that planning them takes longer than the way to a worker"""


class Waiting(NamedTuple):
    """A study to decode. plan: packed until its turn comes."""

    id: str
    slices: int
    plan: bytes
    segmentation: Place | None
    sources: str


@dataclass
class Planned:
    """What planning found. ids: of all studies of the source, in the cache; chosen: those of the first `limit`; findings: of
    the header pass; unchanged: studies that are in the cache as the source gives them, with what their own builds said.
    in_store: all that were chosen, where another build may take them out."""

    ids: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    unchanged: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    said: list[Finding] = field(default_factory=list)
    in_store: dict[str, Waiting] = field(default_factory=dict)

    @property
    def studies(self) -> int:
        return len(self.chosen)


def studies_to_build(job: "BuildJob", found: Inventory, run: Run) -> Planned:
    """Plan all studies, and keep of the first `limit` those that are not there yet. run: `Pool.run`."""
    planned, planning, last = Planned(), Planning(found), ""
    with progress_over("planning", brief=True, studies=len(planning)) as steps:

        def chosen() -> Iterator[Waiting]:
            nonlocal last
            for id, plan, findings in _judged(planning, run):
                steps.advance(studies=1)
                planning.found(findings)
                if plan is None:
                    continue
                planned.ids.add(job.name(id))
                if job.limit is None or len(planned.chosen) < job.limit:
                    planned.chosen.add(job.name(id))
                    last = id
                    yield _waiting(job, id, plan)

        coming = chosen()
        while some := list(islice(coming, STATES_AT_ONCE)):
            _sort_out(job, some, planned)
    planned.findings = planning.findings
    if len(planned.ids) > planned.studies:
        planned.findings = [finding for finding in planned.findings if finding.id <= last]
    return planned


def _judged(planning: Planning, run: Run) -> Iterator[Judged]:
    """What came of each study, in the order of their ids; on the workers, where there is more than one of them needs."""
    tasks = _tasks(planning.studies())
    first = list(islice(tasks, 2))
    if len(first) < 2:
        yield from (judged for task in first for judged in judge(task))
        return
    under_way: dict[int, list[Unplanned]] = {}

    def sent() -> Iterator[list[Unplanned]]:
        for number, task in enumerate(chain(first, tasks)):
            under_way[number] = task
            yield task

    done: dict[int, list[Judged]] = {}
    following = 0
    for number, result in run(judge, sent()):
        task = under_way.pop(number)
        done[number] = judge(task) if isinstance(result, Died) else result
        while following in done:
            yield from done.pop(following)
            following += 1


def _tasks(studies: Iterable[Unplanned]) -> Iterator[list[Unplanned]]:
    task, size = list[Unplanned](), 0
    for study in studies:
        task.append(study)
        size += study.headers.nbytes
        if size >= BYTES_A_TASK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _sort_out(job: "BuildJob", asked: list[Waiting], planned: Planned) -> None:
    states = each(partial(_current_state, job), asked, job.writer.path)
    for study, state in zip(asked, states, strict=True):
        if isinstance(job.writer.path, StorePath):
            planned.in_store[study.id] = study
        if state is None:
            planned.waiting.append(study)
            continue
        planned.unchanged += 1
        if state.findings:
            plan = unpack(study.plan)
            planned.said.extend(with_path(finding, plan, study.segmentation) for finding in state.findings)


def _waiting(job: "BuildJob", id: str, packed: bytes) -> Waiting:
    plan, mask = unpack(packed), find_segmentation(job.segmentations, id)
    at = None if mask is None or job.masks_at is None else job.masks_at / mask.name
    return Waiting(job.name(id), len(plan.slices), packed, at, sources_digest(plan, mask, job.source))


def _current_state(job: "BuildJob", study: Waiting) -> StudyState | None:
    return StudyState.current(job.writer, study.id, job.options, study.sources)


def with_path(finding: Finding, plan: StudyPlan, mask: Place | None) -> Finding:
    """The finding with the path of the file whose number it carries."""
    if finding.reason.startswith("segmentation_") and mask is not None:
        return replace(finding, path=str(mask))
    return replace(finding, path=next((image.path for image in plan.images if str(image.file) == finding.file), ""))
