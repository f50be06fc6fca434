"""The steps of a build: read headers, find what is current, build the rest, write the tables."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
from preprocess.labels import MADE_BY_BUILD, LabelsAndFolds, LabelsTable, make_table
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

    def fingerprint(self, files: list[Path], given: LabelsAndFolds) -> str:
        """Of everything a build depends on; where it has not changed, there is nothing to do."""
        return digest_of(
            {
                "files": tree_digest(files, self.source),
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

    def read_headers(self, files: list[Path], pool: Pool) -> Inventory:
        """Read all headers; in this process where the files are few, else on the workers."""
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
                raise UsageError(line, where=self.source, do="find the file that causes it, and remove it")
            whole.add(found[number])
        return whole

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

    def build_studies(self, plans: list[StudyPlan], pool: Pool) -> Built:
        """Publish every planned study that is not there yet."""
        built, tasks = Built([], {}), []
        for plan in plans:
            id, mask = self.name(plan.id), find_segmentation(self.segmentations, plan.id)
            sources = sources_digest(plan, mask, self.source)
            state = StudyState.load(self.writer, id)
            if state is not None and state.is_current(self.writer, id, self.options, sources):
                built.findings.extend(_with_path(finding, plan, mask) for finding in state.findings)
            else:
                tasks.append(StudyTask(id, plan, mask, self.writer.path, self.pseudonyms, self.options, sources))
        tasks.sort(key=lambda task: -len(task.plan.slices))  # the longest first, so that the last ones end together
        slices = sum(len(task.plan.slices) for task in tasks)
        self.tell(f"{len(plans)} studies: {len(plans) - len(tasks)} unchanged, {len(tasks)} to decode, {slices} slices")
        if tasks:
            with progress_over(len(tasks), slices) as steps:
                for number, result in pool.run(build_study, tasks):
                    task = tasks[number]
                    steps.advance(len(task.plan.slices))
                    if isinstance(result, Died):
                        result = TaskResult(Finding.of_study(task.id, "refused", "worker_died", result.message))
                    if result.refused is not None:
                        built.refused[task.id] = _with_path(result.refused, task.plan, task.segmentation)
                        continue
                    built.findings.extend(_with_path(found, task.plan, task.segmentation) for found in result.findings)
                    built.published += 1
                    built.slices += len(task.plan.slices)
        return built

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
        return tree_digest(sorted(path for path in folder.rglob("*") if path.is_file()), folder)
    except OSError as error:
        raise unlistable(folder, error) from None
