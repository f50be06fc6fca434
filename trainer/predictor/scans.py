"""The studies of a source: a folder or zip of DICOM files, or a cache. The trainer's only door to `preprocess`."""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from cache_schema import Cache, Study
from cache_schema.errors import CacheError, StudyRefused, UsageError, did_you_mean_path
from cache_schema.layout import GROUP, PIXEL_HASH, REPORT
from cache_schema.machine import Machine
from cache_schema.memory import HeldPixels, held, read_ahead
from cache_schema.store import ChangedStudy
from cache_schema.store_path import Place, StorePath, place_of
from trainer.answers.answer import Answer, SuspectedSlice

if TYPE_CHECKING:
    from preprocess.arrivals.arrivals import Arrivals
    from preprocess.arrivals.arrivals import Planned as Planned  # for the watch
    from preprocess.arrivals.arrivals import Settled as Settled
    from preprocess.arrivals.arrivals import Stray as Stray
    from preprocess.findings import Finding
    from preprocess.series.study_plan import StudyPlan


class Refused(NamedTuple):
    """A study that cannot be read, or a file that belongs to none."""

    id: str
    """of the study; or `file` and its number in the source"""
    reason: str
    message: str


def require_dicom_results(source: Place) -> None:
    """Raises UsageError where results cannot be written as DICOM: of a cache, and without highdicom."""
    from preprocess.results.write import require_highdicom

    if is_cache(source):
        what = "is a cache, which keeps nothing of the patient's files"
        raise UsageError(what, where=f"source={source}", expected="DICOM files", do="leave dicom=true out")
    require_highdicom()


class Scans:
    """An open source. Leave it by `with`, or close it: what was unpacked goes.

    Raises UsageError for a source that does not exist or holds no study.
    """

    def __init__(
        self,
        source: Place,
        beside: Path | None = None,
        keep: Path | None = None,
        only: Collection[str] | None = None,
    ):
        """beside: the folder in which a zip is unpacked; by default the system's for temporary files. keep: where to keep the
        decoded studies as a cache, which is then the source. only: ids of the studies to take; by default all."""
        self.source, self.refused = source, dict[str, Refused]()
        self._open, self._only = ExitStack(), only
        check_source(source)
        given = is_cache(source)
        self.cache = Cache(source) if given else None if keep is None else self._built(beside, keep)
        if self.cache is None:
            self._plan(beside)
        else:
            index = self.cache.index
            if (index["pixels"] < index[["slices", "rows", "columns"]].astype("int64").prod(axis=1)).any():
                do = "give the cache that it was cropped from"
                raise UsageError("holds cropped studies", where=source, expected="whole slices", do=do)
            index = index.set_index("id")
            self.digests = index["content_digest"].to_dict()
            self.slices = index["slices"].astype(int).to_dict()
        self.others = [] if only is None else sorted(self.digests.keys() - set(only))
        """ids that the source holds beside those that are wanted"""
        for id in self.others:
            del self.digests[id]

    @classmethod
    def of_plans(cls, source: Path, plans: "Iterable[StudyPlan]", digests: Mapping[str, str]) -> Self:
        """Studies of `source` that are planned already. It has nothing to close."""
        made = cls.__new__(cls)
        made.source, made.refused, made.cache, made._open = source, {}, None, ExitStack()
        made._only, made.others = None, []
        made._take(plans)
        made.digests = dict(digests)
        return made

    def _folder(self, beside: Path | None) -> Path:
        from preprocess.archives import is_zip, unpacked

        assert isinstance(self.source, Path), "only a cache is read from a store"
        if self.source.is_file() and not is_zip(self.source):
            raise UsageError("is a file", where=f"source={self.source}", expected="a folder, or a zip, of DICOM files")
        return self._open.enter_context(unpacked(self.source, beside))

    def _built(self, beside: Path | None, keep: Path) -> Cache:
        """The cache of the source, built or brought up to date."""
        from preprocess.build.build_cache import build_cache
        from preprocess.findings import Finding

        build_cache(self._folder(beside), keep, pixels_only=True, prune=True)
        for row in pd.read_csv(keep / REPORT, dtype=str).fillna("").itertuples():
            self._report(Finding(row.id, row.file, row.severity, row.reason, row.message))
        return Cache(keep)

    def _plan(self, beside: Path | None) -> None:
        from preprocess import plan_studies
        from preprocess.decode_ahead import plan_digest

        folder = self._folder(beside)
        plans, findings = plan_studies(folder)
        self._take(plans)
        self.digests = {id: plan_digest(plan, folder) for id, plan in self._plans.items()}
        for finding in findings:
            self._report(finding)

    def _take(self, plans: "Iterable[StudyPlan]") -> None:
        self._plans = {plan.id: plan for plan in plans}
        self.slices = {id: len(plan.slices) for id, plan in self._plans.items()}
        self._largest = max((plan.rows * plan.columns * len(plan.slices) for plan in self._plans.values()), default=0)

    @property
    def ids(self) -> list[str]:
        """Sorted ids of the studies to decode."""
        return list(self.digests)

    def decoding_processes(self, machine: Machine) -> int:
        """How many processes should decode DICOM files beside the one that uses them; 0 for a cache, which threads read."""
        if self.cache is not None:
            return 0
        from preprocess.decode_ahead import decoding_processes

        return decoding_processes(self._largest, machine)

    def studies(self, without: Collection[str] = (), processes: int = 1) -> Generator[Study, None, None]:
        """The studies, sorted by id, with all their pixels in memory; the next ones are decoded, by so many processes, while the
        caller uses one."""
        ids = [id for id in self.ids if id not in without]
        if self.cache is None:
            from preprocess.decode_ahead import decoded

            with closing(decoded((self._plans[id] for id in ids), self._report, max(1, processes))) as found:
                yield from found
            return
        for study in read_ahead(self._read, ids):
            if study is not None:
                yield study
            del study

    def _read(self, id: str) -> Study | None:
        """None for a damaged study, which counts as refused. Raises CacheError for one that was replaced."""
        assert self.cache is not None
        try:
            return held(self.cache.study(id))
        except ChangedStudy:
            raise
        except CacheError as error:
            self.refused[id] = Refused(id, "damaged", error.what)
            return None

    def write_results(
        self, study: Study, images: Mapping[SuspectedSlice, np.ndarray], answer: Answer, models_digest: str, out: Path
    ) -> None:
        """Writes a study's answer as DICOM files into `out`. A study whose files changed meanwhile counts as refused.

        images: slice -> (rows, columns, 3) uint8 RGB, the whole slice with its heat map drawn in.
        """
        from preprocess.results.write import KeySlice, write_results

        keys = [
            KeySlice(each.level, each.z_index, min(1.0, max(0.0, each.fracture)), image)
            for each, image in images.items()
        ]
        notes = [flag.sentence for flag in answer.flags]
        assert isinstance(study.pixels, HeldPixels)
        plan, calibrated = study.pixels.plan, answer.shown_calibrated
        try:
            write_results(plan, keys, answer.probabilities, calibrated, notes, models_digest, out)
        except StudyRefused as error:
            self.refused[study.id] = Refused(study.id, error.reason, f"no DICOM results: {error.what}")

    def _report(self, finding: "Finding") -> None:
        if self._only is not None and finding.id and finding.id not in self._only:
            return
        if finding.refuses_study or (finding.severity == "refused" and not finding.id):
            what = finding.id or f"file {finding.file or finding.message}"
            self.refused.setdefault(what, Refused(what, finding.reason, finding.message))

    def close(self) -> None:
        self._open.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}  # only the opener closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def arrivals(folder: Path, quiet: float, work: Path, beat: Callable[[], None]) -> "Arrivals":
    """Studies as they arrive in a folder. Raises UsageError if there is no such folder."""
    from preprocess.arrivals.arrivals import Arrivals

    return Arrivals(folder, quiet, work, beat)


def source_of(text: str | Path) -> Place:
    """The place that `source=` names: a folder, a zip, or the address of a store. Raises UsageError for another address."""
    place = place_of(text)
    return place if "://" in str(text) or is_cache(place) else Path(text)  # else a zip of DICOM files


def is_cache(source: Place) -> bool:
    return (source / GROUP).is_file()


def check_source(source: Place) -> None:
    """Raises UsageError if there is no such source."""
    expected = "DICOM files, a zip of them, or a cache"
    if isinstance(source, StorePath):
        if not is_cache(source):
            do = "give DICOM files as a folder or a zip, or build a cache of them: preprocess build-cache SOURCE CACHE"
            raise UsageError("is not a cache", where=f"source={source}", expected="a cache", do=do)
    elif not source.exists():
        near = did_you_mean_path(source.absolute())
        raise UsageError("no such path", where=f"source={source}", expected=expected, do=near)


def pixel_hash(source: Place) -> str:
    """The pixel rules of a cache, or those by which DICOM files are decoded. Raises CspineError for a damaged cache."""
    return Cache(source).pixel_hash if is_cache(source) else PIXEL_HASH
