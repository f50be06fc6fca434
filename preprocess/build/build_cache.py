"""DICOM to a cache: one header pass, then one Dask task per study, then the tables. Finished studies are skipped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_schema.errors import CspineError, UsageError
from cache_schema.layout import is_valid_id
from cache_schema.store_path import Place, StorePath, file_at, place_of
from cache_schema.writer import CacheWriter
from preprocess.build.dask_pool import Pool, check_address
from preprocess.build.job import BuildJob
from preprocess.build.planned import studies_to_build
from preprocess.build.source import Source
from preprocess.build.state import clear_finished, load_finished, options_digest, save_finished, studies_digest
from preprocess.findings import TRANSIENT_REASONS, Finding
from preprocess.headers.opened import copy_to_disk
from preprocess.labels import LabelsTable, check_named, check_same, read_labels_and_folds
from preprocess.progress import say
from preprocess.pseudonyms import Pseudonyms
from preprocess.study_source import segmentation_folder


@dataclass(frozen=True)
class BuildResult:
    """What a build did. studies: in the cache now; refused: studies of the source that are not, and files of no study that
    cannot be used; files: how many of these are files."""

    published: int
    skipped: int
    refused: int
    studies: int
    slices: int
    max_refused: int | None = None
    files: int = 0

    @property
    def exit_status(self) -> int:
        """0 all well, 1 more refused than allowed, 2 nothing could be used, 3 some refused."""
        if self.refused and not self.published + self.skipped:
            return 2
        if self.max_refused is not None and self.refused > self.max_refused:
            return 1
        return 3 if self.refused else 0


@contextmanager
def _beside(source: Place) -> Iterator[Path]:
    """The folder with train.csv and segmentations: the source, or a copy of what lies beside a store's images."""
    if isinstance(source, Path):
        yield source
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        copy_to_disk(source / "segmentations", folder / "segmentations")
        if (source / "train.csv").is_file():
            (folder / "train.csv").write_bytes((source / "train.csv").read_bytes())
        try:
            yield folder
        except CspineError as error:  # it names the copy, which will be gone
            if error.where is not None:
                error.where = str(error.where).replace(str(folder), str(source))
            raise


def build_cache(
    source: str | Place,
    cache: str | Place,
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
    trust_mtime: bool = False,
    pixels_only: bool = False,
    prune: bool = False,
    shard: int | None = None,
    tell: Callable[[str], None] = say,
) -> BuildResult:
    """Build the cache, or bring it up to date; `tell` gets a line now and then.

    source: the RSNA layout, whose train.csv and segmentations are found, or any tree of DICOM files. folds: a CSV or a
    number, 5 by default. workers: local processes, one a core by default; scheduler: a running Dask scheduler instead.
    limit: the first so many studies by id. trust_mtime: where all folders of the source have the times that they had at the
    last build, take their files to be unchanged, without a look at each; one rewritten in place is missed. pixels_only:
    neither labels nor segmentations are looked for. Studies of an earlier build that the source no longer has stay, and
    the report says so, or leave with `prune`; what the source has and cannot be used leaves in any case. shard: slices a
    file in a new cache, for stores (`CacheWriter`).
    Raises UsageError and CacheError for what the user can correct; a study that fails is a row of report.csv and an exit
    status.
    """
    source, cache = source if isinstance(source, StorePath) else file_at(source), place_of(cache)
    check_address(scheduler)
    pseudonyms = None if pseudonymise is None else Pseudonyms.read(pseudonymise)
    labels_given = labels is not None
    with _beside(source) as beside:
        masks = segmentation_folder(beside, segmentations) if segmentations or not pixels_only else None
        if labels is None and not pixels_only and (beside / "train.csv").is_file():
            labels = beside / "train.csv"
        masks_at = masks if masks is None or segmentations or isinstance(source, Path) else source / "segmentations"
        without = [place for place in (cache, masks_at) if place is not None]
        tree = Source(source, without, cache, trust_mtime)
        digest = tree.digest
        given = read_labels_and_folds(labels, folds, pseudonyms or str)
        is_new, writer = not cache.exists(), CacheWriter(cache, shard)
        with writer.locked(lambda: tell(f"another process is changing {cache}; waiting for it")):
            writer.sweep()
            old_labels = LabelsTable.read(cache)
            if old_labels is not None:
                check_same(old_labels, given, labels_given=labels_given, cache=cache)
            job = BuildJob(
                source, writer, masks, masks_at, pseudonyms, options_digest(pseudonyms), limit, paths, prune, tell
            )
            fingerprint = job.fingerprint(digest, given)
            finished = load_finished(writer, fingerprint)
            if finished and job.all_there(finished.get("content")):
                tree.keep(writer)
                good, refused, studies = finished["good"], finished["refused"], finished["studies"]
                return BuildResult(0, good, refused, studies, 0, max_refused, finished["files"])
            clear_finished(writer)
            before = {place.name for place in writer.places()}
            with Pool(workers, scheduler, tell) as pool:
                found = job.read_headers(tree.files, pool)
                found.unread += tree.unlisted
                uids = set(found.studies) - {""}
                try:
                    if not found.studies and not found.unread:
                        raise UsageError("holds no DICOM files", where=source)
                    mismatch = check_named(given, {job.name(uid) for uid in uids if is_valid_id(uid)})
                except UsageError:
                    if is_new:
                        writer.undo()
                    raise
                planned = studies_to_build(job, found, pool.run)
                planned.findings += found.about_others() + job.about_masks(uids)
                built = job.build_studies(planned, pool)
            findings, refused = job.all_findings(planned.findings, built)
            if mismatch is not None:
                findings.append(Finding.of_study("", "flagged", "labels_mismatch", mismatch))
            findings, index = job.finish(findings, refused, planned, before, given)
            good, studies = planned.studies - len(built.refused), len(index)
            files_refused = sum(not is_valid_id(what) for what in refused)
            if not any(finding.reason in TRANSIENT_REASONS for finding in findings):
                content = studies_digest(index)
                summary = {"good": good, "refused": len(refused), "studies": studies, "files": files_refused}
                save_finished(writer, fingerprint, content=content, **summary)
                tree.keep(writer)
            skipped = good - built.published
            return BuildResult(
                built.published, skipped, len(refused), studies, built.slices, max_refused, files_refused
            )
