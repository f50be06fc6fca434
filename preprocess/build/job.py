"""The steps of a build: read headers, find what is current, build the rest, write the tables."""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from cache_schema.documents import checksum, digest_of
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import INDEX
from cache_schema.store import read_cache_document
from cache_schema.store_path import Place, each
from cache_schema.stores import StoreError
from cache_schema.tables import content_digest, table_meta
from cache_schema.writer import CacheWriter
from preprocess.build.dask_pool import Pool
from preprocess.build.isolated_task import Died
from preprocess.build.planned import Planned, Waiting, with_path
from preprocess.build.report import report_frame
from preprocess.build.state import StudyState, decoders_digest, studies_digest, tree_digest
from preprocess.build.task import StudyTask, TaskResult, build_study
from preprocess.findings import Finding
from preprocess.headers.inventory import Inventory, read_many
from preprocess.headers.packed import unpack
from preprocess.headers.source_files import SourceFiles
from preprocess.labels import MADE_BY_BUILD, LabelsAndFolds, LabelsTable, make_table
from preprocess.masks.names import unlistable, unused_masks
from preprocess.natural_order import natural_key
from preprocess.progress import progress_over
from preprocess.pseudonyms import Pseudonyms
from preprocess.series.planning import SALT_BYTES

FILES_A_TASK = 128
ROUNDS = 3
"""in which studies are built again that another build of the same store took out"""
REPLACED_WITHIN = 60.0
"""seconds in which another build has put a study back"""
FILES_READ_HERE = 256
"""a header pass over so few files takes less time than asking the workers"""


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

    source: Place
    writer: CacheWriter
    segmentations: Path | None
    """a folder on this machine"""
    masks_at: Place | None
    """where the workers find what it holds"""
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
            index = self.writer.make_index(whole=True)
            return studies_digest(index) == content and content_digest(index) == table_meta(path / INDEX)["digest"]
        except (OSError, CacheError):
            return False

    def read_headers(self, files: SourceFiles, pool: Pool) -> Inventory:
        """Read all headers; in this process where the files are few, else on the workers."""
        total = len(files)
        self.tell(f"reading the headers of {total} files")
        read = partial(read_many, salt=secrets.token_bytes(SALT_BYTES))
        if total <= FILES_READ_HERE:
            return read(list(enumerate(files, start=1)))
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
        at = {path: str((self.masks_at or folder) / os.path.relpath(path, folder)) for path in unused}
        return [
            Finding("", "", "flagged", "unused_mask", message.format(number.get(path, 0)), at[path]) for path in unused
        ]

    def build_studies(self, planned: Planned, pool: Pool) -> Built:
        """Publish every planned study that is not there yet. Raises StoreError where a worker cannot reach the store."""
        built = Built(planned.said, {})
        self.tell(
            f"{planned.studies} studies: {planned.unchanged} unchanged, {len(planned.waiting)} to decode, "
            f"{sum(study.slices for study in planned.waiting)} slices"
        )
        self._build(planned.waiting, built, pool)
        for _ in range(ROUNDS):
            gone = self._gone(planned.in_store.keys() - built.refused.keys())
            if not gone:
                break
            self._build([planned.in_store[id] for id in sorted(gone)], built, pool)
        return built

    def _gone(self, ids: set[str]) -> set[str]:
        """Studies that another build has begun to replace in a store, where it may have been killed since."""
        return ids - {folder.name for folder in self.writer.studies()} if ids else set()

    def _build(self, waiting: Iterable[Waiting], built: Built, pool: Pool) -> None:
        # the longest first, so that the last ones end together
        waiting = sorted(waiting, key=lambda study: -study.slices)
        slices = sum(study.slices for study in waiting)
        if waiting:
            with progress_over(studies=len(waiting), slices=slices) as steps:
                for number, result in pool.run(build_study, self.tasks(waiting)):
                    study = waiting[number]
                    steps.advance(studies=1, slices=study.slices)
                    if isinstance(result, TaskResult) and (error := result.store_error) is not None:
                        raise StoreError(f"on a worker, {error.what}", where=error.where, do=error.do)
                    if isinstance(result, Died):
                        result = TaskResult(Finding.of_study(study.id, "refused", "worker_died", result.message))
                    findings = result.findings if result.refused is None else (result.refused,)
                    if findings:
                        plan = unpack(study.plan)
                        findings = tuple(with_path(found, plan, study.segmentation) for found in findings)
                    if result.refused is not None:
                        (built.refused[study.id],) = findings
                        continue
                    built.findings.extend(findings)
                    if not result.is_new:
                        continue
                    built.published += 1
                    built.slices += study.slices

    def tasks(self, waiting: Iterable[Waiting]) -> Iterator[StudyTask]:
        """The tasks of studies, each unpacked as it is asked for."""
        for study in waiting:
            plan, cache = unpack(study.plan), self.writer.path
            yield StudyTask(study.id, plan, study.segmentation, cache, self.pseudonyms, self.options, study.sources)

    def all_findings(self, planned: Iterable[Finding], built: Built) -> tuple[list[Finding], set[str]]:
        """All findings but those about the cache itself, and which studies and files were refused."""
        findings, refused = [*built.findings, *built.refused.values()], set(built.refused)
        for finding in (replace(found, id=self.name(found.id)) for found in planned):
            findings.append(finding)
            if finding.refuses_study or (finding.severity == "refused" and not finding.id):
                refused.add(finding.id or f"file {finding.file or finding.message}")
        return findings, refused

    def finish(
        self,
        findings: list[Finding],
        refused: set[str],
        planned: Planned,
        before: set[str],
        given: LabelsAndFolds,
    ) -> tuple[list[Finding], pd.DataFrame]:
        """Remove what was refused, then write labels, report and index; returns the report's findings and the index.

        before: studies that were there when it began.
        Raises CacheError where another build of the same store has taken one of them out and has not put it back.
        """
        there = {place.name for place in self.writer.places()}
        gone = there - planned.ids if self.prune else set()
        each(self.writer.remove, sorted(there & (refused | gone)), self.writer.path)
        index = self._index_with(planned.chosen - refused)
        # a study that came meanwhile is another build's, and so is its row of labels
        labelled = index[index["id"].isin(planned.ids | before)]
        is_written = False
        while not is_written:
            tag, old = self.writer.labels_tag(), LabelsTable.read(self.writer.path)
            known = labelled if old is None else index[index["id"].isin({*labelled["id"], *old.frame["id"]})]
            table = make_table(known, given, old, MADE_BY_BUILD) if len(known) else None
            if table is None or (old is not None and table.frame.equals(old.frame)):
                break
            is_written = self.writer.write_labels(table.as_bytes(), tag)
        findings = [*findings, *self.about_cache(index, planned.ids)]
        self.writer.finish(report=report_frame(findings, paths=self.paths))
        return findings, index

    def _index_with(self, good: set[str]) -> pd.DataFrame:
        """The index, once the studies that this build has made, and another one replaces, are there again."""
        ends = time.monotonic() + REPLACED_WITHIN
        while missing := good - set((index := self.writer.make_index())["id"]):
            if isinstance(self.writer.path, Path) or time.monotonic() > ends:
                what = f"another process took {len(missing)} studies out, first {min(missing)}"
                raise CacheError(what, where=self.writer.path, do="run the same command again")
            time.sleep(1)
        return index

    def about_cache(self, index: pd.DataFrame, source_ids: set[str]) -> Iterator[Finding]:
        boxed = dict(zip(index["id"], index["x0"].notna(), strict=True))
        states = each(partial(StudyState.load, self.writer), boxed, self.writer.path)
        for (id, has_box), state in zip(boxed.items(), states, strict=True):
            if state is not None and state.lost_box and not has_box:
                yield Finding.of_study(id, "flagged", "study_box_lost")
            if id not in source_ids:
                yield Finding.of_study(id, "flagged", "not_in_source")


def _masks_digest(folder: Path) -> str:
    try:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return tree_digest((str(path), os.path.relpath(path, folder)) for path in files)
    except OSError as error:
        raise unlistable(folder, error) from None
