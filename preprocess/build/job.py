"""The steps of a build: read headers, find what is current, build the rest, write the tables."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd

from cache_schema.documents import checksum, digest_of
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import INDEX, is_valid_id
from cache_schema.store import read_cache_document
from cache_schema.tables import content_digest, table_meta
from cache_schema.verify import record_if_whole
from cache_schema.writer import CacheWriter
from preprocess.build.dask_pool import Pool
from preprocess.build.isolated_task import Died
from preprocess.build.report import report_frame
from preprocess.build.state import StudyState, decoders_digest, sources_digest, studies_digest, tree_digest
from preprocess.build.task import StudyTask, TaskResult, build_study
from preprocess.findings import Finding
from preprocess.headers.inventory import Inventory, read_many
from preprocess.headers.packed import pack, unpack
from preprocess.headers.source_files import SourceFiles
from preprocess.labels import MADE_BY_BUILD, LabelsAndFolds, LabelsTable, make_table
from preprocess.masks.names import find_segmentation, unlistable, unused_masks
from preprocess.natural_order import natural_key
from preprocess.progress import progress_over
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.planning import SALT_BYTES, Planning
from preprocess.series.study_plan import StudyPlan

FILES_A_TASK = 128
FILES_READ_HERE = 256
"""a header pass over so few files takes less time than asking the workers"""


@dataclass(frozen=True)
class Waiting:
    """A study to decode. plan: packed until its turn comes."""

    id: str
    slices: int
    plan: bytes
    segmentation: Path | None
    sources: str


@dataclass
class Planned:
    """What planning found. ids: of all studies of the source, in the cache; findings: of the header pass; unchanged: studies
    that are in the cache as the source gives them, with what their own builds said."""

    ids: set[str]
    findings: list[Finding]
    unchanged: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    said: list[Finding] = field(default_factory=list)

    @property
    def studies(self) -> int:
        return self.unchanged + len(self.waiting)


@dataclass
class Built:
    """What became of the planned studies. refused: by the study's id in the cache."""

    findings: list[Finding]
    refused: dict[str, Finding]
    published: int = 0
    slices: int = 0


@dataclass(frozen=True)
class BuildJob:
    """What was asked for, and the cache that it is made in."""

    source: Path
    writer: CacheWriter
    segmentations: Path | None
    pseudonyms: Pseudonyms | None
    options: str
    limit: int | None
    paths: bool
    prune: bool
    tell: Callable[[str], None]

    def name(self, uid: str) -> str:
        return self.pseudonyms(uid) if self.pseudonyms else uid

    def fingerprint(self, files: str, given: LabelsAndFolds) -> str:
        """Of everything that decides about a build. files: digest of the source's, as `tree_digest` gives it."""
        return digest_of(
            {
                "files": files,
                "segmentations": self.segmentations and _masks_digest(self.segmentations),
                "labels": given.labels_digest,
                "folds": given.folds_name if given.folds_given else None,
                "options": [self.options, self.limit, self.paths, self.prune, decoders_digest()],
            }
        )

    def all_there(self, content: str | None) -> bool:
        """Whether the tables are as listed, and the studies are those of a digest and have all their files; a stat for each.

        Other labels and other study boxes do not matter.
        """
        path = self.writer.path
        try:
            tables = read_cache_document(path)["files"].items()
            if any(checksum((path / name).read_bytes()) != listed for name, listed in tables):
                return False
            index = self.writer.make_index()
            if studies_digest(index) != content or content_digest(index) != table_meta(path / INDEX)["digest"]:
                return False
            return all(record_if_whole(folder) is not None for folder in self.writer.studies())
        except (OSError, CacheError):
            return False

    def read_headers(self, files: SourceFiles, pool: Pool) -> Inventory:
        """Read all headers; in this process where the files are few, else on the workers."""
        total = len(files)
        self.tell(f"reading the headers of {total} files")
        read = partial(read_many, salt=secrets.token_bytes(SALT_BYTES))
        if total <= FILES_READ_HERE:
            return read(enumerate(files, start=1))
        found, died = Inventory(), dict[int, Died]()
        with progress_over(studies=None, files=total) as steps:
            for number, result in pool.run(read, files.batches(FILES_A_TASK)):
                if isinstance(result, Died):
                    died[number] = result
                    continue
                before = len(found.studies)
                found.add(result)
                count = min(FILES_A_TASK, total - number * FILES_A_TASK)
                steps.advance(studies=len(found.studies) - before, files=count)
        if died:
            first = min(died)
            begin, end = first * FILES_A_TASK + 1, min(total, (first + 1) * FILES_A_TASK)
            which = f"files {begin} to {end}, in natural order of their paths"
            line = f"reading the headers of {which}, {died[first].message}"
            raise UsageError(line, where=self.source, do="find the file that causes it, and remove it")
        return found

    def about_masks(self, uids: set[str]) -> list[Finding]:
        """A finding for every mask that no study of the source takes."""
        folder = self.segmentations
        if folder is None or not (unused := unused_masks(folder, uids)):
            return []
        listed = sorted(folder.rglob("*"), key=lambda path: natural_key(str(path)))
        number = {path: count for count, path in enumerate(listed, start=1)}
        message = "number {} of the files and folders in its folder, in natural order, belongs to no study"
        return [
            Finding("", "", "flagged", "unused_mask", message.format(number.get(path, 0)), str(path)) for path in unused
        ]

    def plan_studies(self, found: Inventory) -> Planned:
        """Plan all studies, and keep of the first `limit` those that are not there yet."""
        planned, planning, last = Planned(set(), []), Planning(found), ""
        with progress_over("planning", brief=True, studies=len(planning)) as steps:
            for plan in planning:
                steps.advance(studies=1)
                if plan is None:
                    continue
                if self.limit is None or len(planned.ids) < self.limit:
                    self._sort_out(plan, planned)
                    last = plan.id
                planned.ids.add(self.name(plan.id))
        planned.findings = planning.findings
        if len(planned.ids) > planned.studies:
            planned.findings = [finding for finding in planned.findings if finding.id <= last]
        return planned

    def _sort_out(self, plan: StudyPlan, planned: Planned) -> None:
        id, mask = self.name(plan.id), find_segmentation(self.segmentations, plan.id)
        sources = sources_digest(plan, mask, self.source)
        state = StudyState.load(self.writer, id)
        if state is not None and state.is_current(self.writer, id, self.options, sources):
            planned.unchanged += 1
            planned.said.extend(_with_path(finding, plan, mask) for finding in state.findings)
        else:
            planned.waiting.append(Waiting(id, len(plan.slices), pack(plan), mask, sources))

    def build_studies(self, planned: Planned, pool: Pool) -> Built:
        """Publish every planned study that is not there yet."""
        built = Built(planned.said, {})
        # the longest first, so that the last ones end together
        waiting = sorted(planned.waiting, key=lambda study: -study.slices)
        slices = sum(study.slices for study in waiting)
        self.tell(
            f"{planned.studies} studies: {planned.unchanged} unchanged, {len(waiting)} to decode, {slices} slices"
        )
        if waiting:
            with progress_over(studies=len(waiting), slices=slices) as steps:
                for number, result in pool.run(build_study, self.tasks(waiting)):
                    study = waiting[number]
                    steps.advance(studies=1, slices=study.slices)
                    if isinstance(result, Died):
                        result = TaskResult(Finding.of_study(study.id, "refused", "worker_died", result.message))
                    findings = result.findings if result.refused is None else (result.refused,)
                    if findings:
                        plan = unpack(study.plan)
                        findings = tuple(_with_path(each, plan, study.segmentation) for each in findings)
                    if result.refused is not None:
                        (built.refused[study.id],) = findings
                        continue
                    built.findings.extend(findings)
                    built.published += 1
                    built.slices += study.slices
        return built

    def tasks(self, waiting: Iterable[Waiting]) -> Iterator[StudyTask]:
        """The tasks of studies, each unpacked as it is asked for."""
        for study in waiting:
            plan, cache = unpack(study.plan), self.writer.path
            yield StudyTask(study.id, plan, study.segmentation, cache, self.pseudonyms, self.options, study.sources)

    def all_findings(self, planned: Iterable[Finding], built: Built) -> tuple[list[Finding], set[str]]:
        """All findings but those about the cache itself, and which studies and files were refused."""
        findings, refused = [*built.findings, *built.refused.values()], set(built.refused)
        for finding in (replace(each, id=self.name(each.id)) for each in planned):
            findings.append(finding)
            if finding.refuses_study or (finding.severity == "refused" and not finding.id):
                refused.add(finding.id or f"file {finding.file or finding.message}")
        return findings, refused

    def finish(
        self,
        findings: list[Finding],
        refused: set[str],
        source_ids: set[str],
        given: LabelsAndFolds,
        old: LabelsTable | None,
    ) -> tuple[list[Finding], pd.DataFrame]:
        """Remove what was refused, then write labels, report and index; returns the report's findings and the index."""
        gone = {folder.name for folder in self.writer.studies()} - source_ids if self.prune else set()
        for id in refused | gone:
            if is_valid_id(id):
                self.writer.remove(id)
        index = self.writer.make_index()
        findings = [*findings, *self.about_cache(index, source_ids)]
        report = report_frame(findings, paths=self.paths)
        table = make_table(index, given, old, MADE_BY_BUILD) if len(index) else None
        if table is None or (old is not None and table.frame.equals(old.frame)):
            self.writer.finish(report=report)
        else:
            table.write(self.writer, report)
        return findings, index

    def about_cache(self, index: pd.DataFrame, source_ids: set[str]) -> Iterator[Finding]:
        boxed = dict(zip(index["id"], index["x0"].notna(), strict=True))
        for id, has_box in boxed.items():
            state = StudyState.load(self.writer, id)
            if state is not None and state.lost_box and not has_box:
                yield Finding.of_study(id, "flagged", "study_box_lost")
            if id not in source_ids:
                yield Finding.of_study(id, "flagged", "not_in_source")


def _with_path(finding: Finding, plan: StudyPlan, mask: Path | None) -> Finding:
    """The finding with the path of the file whose number it carries."""
    if finding.reason.startswith("segmentation_") and mask is not None:
        return replace(finding, path=str(mask))
    return replace(finding, path=next((each.path for each in plan.images if str(each.file) == finding.file), ""))


def _masks_digest(folder: Path) -> str:
    try:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return tree_digest((str(path), os.path.relpath(path, folder)) for path in files)
    except OSError as error:
        raise unlistable(folder, error) from None
