"""DICOM to a cache: one header pass, then a Dask task a study, then the tables. What is done is skipped."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cache_schema.documents import checksum, digest_of
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import INDEX, is_valid_id
from cache_schema.store import read_cache_document, read_study_document
from cache_schema.tables import content_digest, table_meta
from cache_schema.verify import changed_files
from cache_schema.writer import CacheWriter
from preprocess import segmentation_folder
from preprocess.cluster import Pool, check_address
from preprocess.findings import Finding
from preprocess.inventory import list_files, read_many
from preprocess.labels import MADE_BY_BUILD, LabelsTable, Wanted, check_same, make_table, wanted
from preprocess.progress import progress_over, say
from preprocess.pseudonyms import Pseudonyms
from preprocess.report import PASSING_REASONS, Row, build_row, report_frame
from preprocess.resume import (
    decoders_digest,
    forget_finish,
    is_done,
    options_digest,
    recall,
    recall_finish,
    remember_finish,
    sources_digest,
    studies_digest,
    tree_digest,
)
from preprocess.segmentation import find_segmentation
from preprocess.series import judge
from preprocess.study_plan import StudyPlan
from preprocess.task import StudyTask, make_study

FILES_A_TASK = 128
FILES_READ_HERE = 256
"""a header pass over so few files takes less time than asking the workers"""


@dataclass(frozen=True)
class BuildResult:
    """What a build did. studies: in the cache now; refused: studies of the source that are not."""

    published: int
    skipped: int
    refused: int
    studies: int
    slices: int
    max_refused: int | None = None

    @property
    def exit_status(self) -> int:
        """0 all well, 1 more refused than allowed, 2 nothing could be done, 3 some refused."""
        if self.max_refused is not None and self.refused > self.max_refused:
            return 1
        if self.refused and not self.published + self.skipped:
            return 2
        return 3 if self.refused else 0


def build_cache(
    source: str | Path,
    cache: str | Path,
    *,
    segmentations: str | Path | None = None,
    labels: str | Path | None = None,
    folds: str | int | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    max_refused: int | None = None,
    paths: bool = False,
    pseudonymise: str | Path | None = None,
    pixels_only: bool = False,
    prune: bool = False,
    tell: Callable[[str], None] = say,
) -> BuildResult:
    """Build the cache, or bring it up to date; `tell` gets a line now and then.

    source: the RSNA layout, whose train.csv and segmentations are found, or any tree of DICOM files. folds: a CSV or a
    number, 5 by default. workers: local processes, one a core by default; scheduler: a running Dask scheduler instead.
    limit: the first so many studies by id. pixels_only: neither labels nor segmentations are looked for. Studies of an
    earlier build that the source no longer has stay, and the report says so, or leave with `prune`; what the source has
    and cannot be used leaves in any case.
    Raises UsageError and CacheError for what the user can mend; a study that fails is a row of report.csv and an exit
    status.
    """
    source, cache = Path(source), Path(cache)
    check_address(scheduler)
    files = list_files(source)
    if not files:
        raise UsageError("holds no files", where=source, expected="DICOM files")
    pseudonyms = None if pseudonymise is None else Pseudonyms.read(pseudonymise)
    labels_given = labels is not None
    if not pixels_only:
        segmentations = segmentation_folder(source, segmentations)
        if labels is None and (source / "train.csv").is_file():
            labels = source / "train.csv"
    want = wanted(labels, folds, pseudonyms or str)
    is_new, writer = not cache.exists(), CacheWriter(cache)
    with writer.locked(lambda: tell(f"another process is changing {cache}; waiting for it")):
        writer.sweep()
        old_labels = LabelsTable.read(cache)
        if old_labels is not None:
            check_same(old_labels, want, labels_given=labels_given, cache=cache)
        job = _Job(source, writer, segmentations, pseudonyms, options_digest(pseudonyms), limit, paths, prune, tell)
        fingerprint = job.fingerprint(files, want)
        finished = recall_finish(writer, fingerprint)
        if finished and job.all_there(finished.get("content")):
            return BuildResult(0, finished["good"], finished["refused"], finished["studies"], 0, max_refused)
        forget_finish(writer)
        with Pool(workers, scheduler, tell) as pool:
            plans, findings = job.plan(files, pool)
            if not plans and not findings:
                if is_new:
                    shutil.rmtree(cache)
                raise UsageError("holds no DICOM files", where=source)
            source_ids = {job.name(plan.id) for plan in plans}
            if limit is not None and len(plans) > limit:
                plans = plans[:limit]
                findings = [finding for finding in findings if finding.id <= plans[-1].id]
            done = job.make(plans, pool)
        rows, refused = job.judge(findings, done)
        rows, index = job.finish(rows, refused, source_ids, want, old_labels)
        good, studies = len(plans) - len(done.refused), len(index)
        if not any(row.reason in PASSING_REASONS for row in rows):
            content = studies_digest(index)
            remember_finish(writer, fingerprint, content=content, good=good, refused=len(refused), studies=studies)
        return BuildResult(done.published, good - done.published, len(refused), studies, done.slices, max_refused)


@dataclass
class _Done:
    """What became of the planned studies, by their id in the cache."""

    rows: list[Row]
    refused: dict[str, Row]
    published: int = 0
    slices: int = 0


@dataclass(frozen=True)
class _Job:
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

    def fingerprint(self, files: list[Path], want: Wanted) -> str:
        """Of everything a build depends on; where it has not changed, there is nothing to do."""
        masks = [] if self.segmentations is None else sorted(self.segmentations.iterdir())
        return digest_of(
            {
                "files": tree_digest(files, self.source),
                "segmentations": self.segmentations and tree_digest(masks, self.segmentations),
                "labels": want.labels_digest,
                "folds": want.folds_name if want.folds_given else None,
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
            return not any(
                changed_files(folder, read_study_document(folder)[1]["files"]) for folder in self.writer.studies()
            )
        except (OSError, CacheError):
            return False

    def plan(self, files: list[Path], pool: Pool) -> tuple[list[StudyPlan], list[Finding]]:
        """Read all headers and decide."""
        self.tell(f"reading the headers of {len(files)} files")
        numbered = list(enumerate(files, start=1))
        if len(files) <= FILES_READ_HERE:
            headers, unread = read_many(numbered)
        else:
            batches = [numbered[first : first + FILES_A_TASK] for first in range(0, len(files), FILES_A_TASK)]
            found = dict(pool.run(read_many, batches))
            if None in found.values():
                raise UsageError(
                    "a worker died over its headers, twice", where=self.source, do="run again with fewer workers"
                )
            headers = [header for batch in sorted(found) for header in found[batch][0]]
            unread = [finding for batch in sorted(found) for finding in found[batch][1]]
        return judge(headers, unread)

    def make(self, plans: list[StudyPlan], pool: Pool) -> _Done:
        """Publish every planned study that is not there yet."""
        done, tasks = _Done([], {}), []
        for plan in plans:
            id, mask = self.name(plan.id), find_segmentation(self.segmentations, plan.id)
            sources = sources_digest(plan, mask, self.source)
            memory = recall(self.writer, id)
            if is_done(self.writer, id, memory, self.options, sources):
                done.rows.extend(self.with_path(row, plan, mask) for row in memory.rows)
            else:
                task = StudyTask(id, plan, mask, self.writer.path, self.pseudonyms, self.options, sources)
                tasks.append(task)
        tasks.sort(key=lambda task: -len(task.plan.slices))  # the longest first, so that the last ones end together
        slices = sum(len(task.plan.slices) for task in tasks)
        self.tell(
            f"{len(plans)} studies: {len(plans) - len(tasks)} there already, {len(tasks)} to decode, {slices} slices"
        )
        if tasks:
            with progress_over(len(tasks), slices) as steps:
                for number, outcome in pool.run(make_study, tasks):
                    task = tasks[number]
                    steps.advance(len(task.plan.slices))
                    refused = build_row(task.id, "refused", "worker_died") if outcome is None else outcome.refused
                    if refused is not None:
                        done.refused[task.id] = self.with_path(refused, task.plan, task.segmentation)
                        continue
                    done.rows.extend(self.with_path(row, task.plan, task.segmentation) for row in outcome.rows)
                    done.published += 1
                    done.slices += len(task.plan.slices)
        return done

    def with_path(self, row: Row, plan: StudyPlan, mask: Path | None) -> Row:
        """The row with its file's path in place of its number, where paths were asked for."""
        if not self.paths:
            return row
        if row.reason.startswith("segmentation_") and mask is not None:
            return replace(row, file=str(mask))
        paths = {str(place.file): place.path for place in plan.slices}
        return replace(row, file=paths.get(row.file, row.file))

    def judge(self, findings: Iterable[Finding], done: _Done) -> tuple[list[Row], set[str]]:
        """All rows but those about the cache itself, and which studies were refused."""
        rows, refused = [*done.rows, *done.refused.values()], set(done.refused)
        for finding in findings:
            row = Row.of(self.pseudonyms.finding(finding) if self.pseudonyms else finding, paths=self.paths)
            rows.append(row)
            if finding.refuses_study:
                refused.add(row.id or f"file {row.file}")
        return rows, refused

    def finish(
        self, rows: list[Row], refused: set[str], source_ids: set[str], want: Wanted, old: LabelsTable | None
    ) -> tuple[list[Row], pd.DataFrame]:
        """Take out what was refused, then write labels, report and index; returns the report's rows and the index."""
        gone = {folder.name for folder in self.writer.studies()} - source_ids if self.prune else set()
        for id in refused | gone:
            if is_valid_id(id):
                self.writer.remove(id)
        index = self.writer.make_index()
        rows = [*rows, *self.rows_about_cache(index, source_ids)]
        table = make_table(index, want, old, MADE_BY_BUILD) if len(index) else None
        if table is None or (old is not None and table.frame.equals(old.frame)):
            self.writer.finish(report=report_frame(rows))
        else:
            meta = {"made_by": table.made_by, "inputs": table.inputs, "extra": {"folds": table.folds_name}}
            self.writer.finish(table.frame, report_frame(rows), **meta)
        return rows, index

    def rows_about_cache(self, index: pd.DataFrame, source_ids: set[str]) -> Iterator[Row]:
        boxed = dict(zip(index["id"], index["x0"].notna(), strict=True))
        for id, has_box in boxed.items():
            memory = recall(self.writer, id)
            if memory is not None and memory.lost_box and not has_box:
                yield build_row(id, "flagged", "study_box_lost")
            if id not in source_ids:
                yield build_row(id, "flagged", "not_in_source")
