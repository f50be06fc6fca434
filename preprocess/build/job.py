"""The steps of a build: reading headers, what is there already, making what is not, and the tables at the end."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from cache_schema.documents import checksum, digest_of
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import INDEX, is_valid_id
from cache_schema.store import read_cache_document, read_study_document
from cache_schema.tables import content_digest, table_meta
from cache_schema.verify import changed_files
from cache_schema.writer import CacheWriter
from preprocess.build.cluster import Pool
from preprocess.build.isolated_task import Died
from preprocess.build.report import Row, build_row, report_frame
from preprocess.build.state import (
    decoders_digest,
    is_done,
    recall,
    sources_digest,
    studies_digest,
    tree_digest,
)
from preprocess.build.task import StudyTask, make_study
from preprocess.findings import Finding
from preprocess.headers.inventory import Inventory, read_many
from preprocess.labels import MADE_BY_BUILD, LabelsTable, Wanted, make_table
from preprocess.masks.names import find_segmentation, unlistable, unused_masks
from preprocess.natural_order import natural_key
from preprocess.progress import progress_over
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.planning import SALT_BYTES
from preprocess.series.study_plan import StudyPlan

FILES_A_TASK = 128
FILES_READ_HERE = 256
"""a header pass over so few files takes less time than asking the workers"""


@dataclass
class Done:
    """What became of the planned studies, by their id in the cache."""

    rows: list[Row]
    refused: dict[str, Row]
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

    def fingerprint(self, files: list[Path], want: Wanted) -> str:
        """Of everything a build depends on; where it has not changed, there is nothing to do."""
        masks = [] if self.segmentations is None else self.mask_files()
        return digest_of(
            {
                "files": tree_digest(files, self.source),
                "segmentations": self.segmentations and tree_digest(masks, self.segmentations),
                "labels": want.labels_digest,
                "folds": want.folds_name if want.folds_given else None,
                "options": [self.options, self.limit, self.paths, self.prune, decoders_digest()],
            }
        )

    def mask_files(self) -> list[Path]:
        try:
            return sorted(path for path in self.segmentations.rglob("*") if path.is_file())
        except OSError as error:
            raise unlistable(self.segmentations, error) from None

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

    def read_headers(self, files: list[Path], pool: Pool) -> Inventory:
        """What every file is; here where there are few, else on the workers."""
        self.tell(f"reading the headers of {len(files)} files")
        numbered = list(enumerate(files, start=1))
        read = partial(read_many, salt=secrets.token_bytes(SALT_BYTES))
        if len(files) <= FILES_READ_HERE:
            return read(numbered)
        batches = [numbered[first : first + FILES_A_TASK] for first in range(0, len(files), FILES_A_TASK)]
        found = dict(pool.run(read, batches))
        whole = Inventory()
        for number, batch in enumerate(batches):
            if isinstance(found[number], Died):
                which = f"files {batch[0][0]} to {batch[-1][0]}, in natural order of their paths"
                line = f"reading the headers of {which}, {found[number].message}"
                raise UsageError(line, where=self.source, do="find the file that does it, and take it out")
            whole.add(found[number])
        return whole

    def about_masks(self, uids: set[str]) -> list[Finding]:
        """A row for every mask that no study of the source takes."""
        unused = unused_masks(self.segmentations, uids)
        if not unused:
            return []
        listed = sorted((path for path in self.segmentations.rglob("*")), key=lambda path: natural_key(str(path)))
        number = {path: place for place, path in enumerate(listed, start=1)}
        message = "number {} of its folder's files and folders, in natural order, is taken by no study"
        return [
            Finding("", "", "flagged", "unused_mask", message.format(number.get(path, 0)), str(path)) for path in unused
        ]

    def make(self, plans: list[StudyPlan], pool: Pool) -> Done:
        """Publish every planned study that is not there yet."""
        done, tasks = Done([], {}), []
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
                    died = isinstance(outcome, Died)
                    refused = build_row(task.id, "refused", "worker_died", outcome.message) if died else outcome.refused
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
        paths = {str(place.file): place.path for place in plan.images}
        return replace(row, file=paths.get(row.file, row.file))

    def judge(self, findings: Iterable[Finding], done: Done) -> tuple[list[Row], set[str]]:
        """All rows but those about the cache itself, and which studies were refused."""
        rows, refused = [*done.rows, *done.refused.values()], set(done.refused)
        for finding in findings:
            row = Row.of(self.pseudonyms.finding(finding) if self.pseudonyms else finding, paths=self.paths)
            rows.append(row)
            if finding.refuses_study or (finding.severity == "refused" and not finding.id):
                refused.add(row.id or f"file {row.file or row.message}")
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
