"""Answers for all studies of a source, kept in a folder as they come: an interrupted job goes on where it was."""

import os
import signal
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cache_schema import Study, read_table, write_table
from cache_schema.documents import write_whole
from cache_schema.errors import CacheError, CspineError, UsageError
from cache_schema.machine import Machine, this_machine
from cache_schema.store_path import Place
from cache_schema.tables import own_meta
from trainer.answers.answer import Answer
from trainer.answers.kept import load_answer, save_answer
from trainer.predictor.pace import Measured, Pace, Timer
from trainer.predictor.scans import Refused, Scans, pixel_hash
from trainer.process.child import end_with_parent
from trainer.process.command import say
from trainer.process.faults import in_one_line
from trainer.runs.file_names import PREDICTIONS_OF_ALL
from trainer.trained.models import Models, TrainedModel

if TYPE_CHECKING:
    from trainer.predictor.predictor import Predictor, Rows

ANSWERS, CARDS, DICOM, RUNS = "answers", "cards", "dicom", "runs"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What to answer with, and where to keep it."""

    models: Models
    out: Path
    given: Mapping[str, Any]
    """settings by section that override those of the training"""
    keep_runs: bool = False
    """keep each run's own predictions as well"""
    cards: bool = False
    """draw an exam card of each study"""
    dicom: bool = False
    """write the results as DICOM files"""
    machine: Machine | None = None
    """what may be used; None: what is found"""

    def check(self) -> None:
        """Raises UsageError for settings that do not fit the models."""
        from trainer.session import on_gpu

        for model in self.models.every:
            model.settings(self.given, gpu=on_gpu())

    def check_pixels(self, source: Place) -> None:
        """Raises UsageError for a cache with other pixel rules than those that the models were trained on."""
        own = pixel_hash(source)
        if own != self.models.pixel_hash:
            line, expected = f"was trained with pixel_hash={self.models.pixel_hash}", f"pixel_hash={own}"
            raise UsageError(line, where=self.models.where, expected=expected, do="give models of such pixels")

    def answer(self, id: str, digest: str) -> Answer | None:
        """The answer of an earlier job for this state of the study; None if it must be made."""
        if (self.cards and not self.card(id).is_file()) or (self.dicom and not (self._dicom(id) / "SR.dcm").is_file()):
            return None
        if self.keep_runs and not all(self._has_rows(model, id, digest) for model in self.models.every):
            return None
        return load_answer(self._path(id), self._made_from(digest))

    def run(
        self, scans: Scans, ids: Collection[str], processes: int, pace: Pace | None = None, *, quiet: bool = False
    ) -> Measured:
        """Answers these studies, shared by several processes, one per GPU. What scans refuse is added to their list.

        pace: where it sets an end, some studies may be left. quiet: do not say how it computes. Returns what they took.
        """
        pace = pace or Pace()
        if processes == 1:
            return self._work(scans, ids, pace, quiet=quiet)
        context = get_context("spawn")
        found = context.SimpleQueue()
        shares = [sorted(ids)[first::processes] for first in range(processes)]
        workers = [
            context.Process(
                target=_share, args=(self, scans, share, pace, (number, processes), quiet, found), daemon=True
            )
            for number, share in enumerate(shares)
            if share
        ]
        # they inherit it: on Ctrl-C the main process ends them, also while they still import
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for worker in workers:
                worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        total = Measured()
        for _ in workers:
            answered = _next(found, workers)
            if isinstance(answered, CspineError):
                raise answered
            refused, measured = answered
            scans.refused |= refused
            total += measured
        return total

    def runs_tables(self, ids: Collection[str]) -> dict[Path, pd.DataFrame]:
        """Writes each run's predictions of these studies as one table, and removes their parts."""
        found = {}
        for model in self.models.every:
            parts = [part for id in sorted(ids) if (part := self._rows(model, id)).is_file()]
            if not parts:
                continue
            path = self.out / RUNS / model.name / PREDICTIONS_OF_ALL
            found[path] = pd.concat([read_table(part) for part in parts], ignore_index=True)
            write_table(path, found[path], "trainer.predict", {"run": model.digest})
        return found

    def remove_others(self, ids: Collection[str]) -> None:
        """Removes what was made of studies that the source no longer holds."""
        for pattern in (f"{ANSWERS}/*.json", f"{CARDS}/*.png", f"{RUNS}/*/*/studies/*.parquet"):
            for path in self.out.glob(pattern):
                if path.stem not in ids:
                    path.unlink()
        for path in (self.out / DICOM).glob("*"):
            if path.name not in ids and path.is_dir():  # file by file: what others keep there stays
                for made in (path / "SR.dcm", *(path / "SC").glob("*.dcm")):
                    made.unlink(missing_ok=True)
                for folder in (path / "SC", path):
                    with suppress(OSError):
                        folder.rmdir()

    def _work(
        self, scans: Scans, ids: Collection[str], pace: Pace, *, processes: int = 1, quiet: bool = False
    ) -> Measured:
        from trainer.predictor.predictor import Predictor

        machine = (self.machine or this_machine()).shared(processes)
        predictor = Predictor(self.models, machine=machine, clock=pace.clock, **self.given)
        decoding = scans.decoding_processes(machine)
        for line in () if quiet else predictor.computing.lines(self.models.every, decoding):
            say(line)
        others = set(scans.ids) - set(ids)
        rows = partial(self._keep_rows, scans.digests) if self.keep_runs else None
        timer = Timer(pace, decoding)
        for _ in self.answers(predictor, scans, timer, others, rows):
            pass
        return timer.measured

    def answers(
        self,
        predictor: "Predictor",
        scans: Scans,
        timer: Timer,
        without: Collection[str] = (),
        rows: "Rows | None" = None,
    ) -> Generator[Answer]:
        """Answers the studies of `scans` but those of `without`, and yields each answer once it is kept.

        timer: lets no study begin that would end too late.
        """
        with closing(scans.studies(without=without, processes=timer.decoding_processes)) as studies:
            for study, answer in predictor.with_studies(timer.in_time(studies), rows):
                started = time.perf_counter()
                if self.cards or self.dicom:
                    self._draw(predictor, scans, study, answer)
                answer = replace(answer, seconds={**answer.seconds, "report": time.perf_counter() - started})
                save_answer(self._path(study.id), answer, self._made_from(scans.digests[study.id]))
                timer.answered(study, predictor.spent)
                del study
                yield answer

    def _draw(self, predictor: "Predictor", scans: Scans, study: Study, answer: Answer) -> None:
        """The card and the DICOM results, both with heat maps."""
        from trainer.predictor.heat_maps import heat_maps
        from trainer.predictor.predictor import lacks_memory
        from trainer.report.card import exam_card
        from trainer.report.heat_map import painted

        try:
            heats = heat_maps(predictor, study, answer)
        except Exception as error:
            if not lacks_memory(error):
                raise
            say(f"{study.id}: out of memory: no heat maps")
            heats = []
        if self.cards:
            path = self.card(study.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, exam_card(answer, study, heats))
        if self.dicom:
            places = [(heat, heat.suspected.z_index) for heat in heats]
            images = {heat.suspected: painted(study.read(z, z + 1)[0], heat) for heat, z in places}
            scans.write_results(study, images, answer, self.models.digest, self._dicom(study.id))

    def _keep_rows(self, digests: Mapping[str, str], model: TrainedModel, table: pd.DataFrame) -> None:
        for id, rows in table.groupby("id"):
            path = self._rows(model, str(id))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(
                path, rows.reset_index(drop=True), "trainer.predict", {"run": model.digest, "study": digests[str(id)]}
            )

    def _has_rows(self, model: TrainedModel, id: str, digest: str) -> bool:
        """Whether the model's predictions of this state of the study are kept, undamaged."""
        path = self._rows(model, id)
        with suppress(CacheError):
            return path.is_file() and own_meta(path)["inputs"] == {"run": model.digest, "study": digest}
        return False

    def _rows(self, model: TrainedModel, id: str) -> Path:
        return self.out / RUNS / model.name / "studies" / f"{id}.parquet"

    def card(self, id: str) -> Path:
        """Where a study's exam card lies."""
        return self.out / CARDS / f"{id}.png"

    def _dicom(self, id: str) -> Path:
        return self.out / DICOM / id

    def _path(self, id: str) -> Path:
        return self.out / ANSWERS / f"{id}.json"

    def _made_from(self, digest: str) -> dict[str, Any]:
        return {"study": digest, "models": self.models.digest, "settings": dict(self.given)}


def _share(
    job: Job, scans: Scans, ids: Collection[str], pace: Pace, place: tuple[int, int], quiet: bool, found: Any
) -> None:
    """One process's share, on the GPU of its number. Its result is what was refused and how long it took, or the error.

    place: its number, and the number of all.
    """
    number, processes = place
    parent = parent_process()
    assert parent is not None and parent.pid is not None
    end_with_parent(parent.pid, signal.SIGTERM)
    try:
        _use_gpu(number)
        measured = job._work(scans, ids, pace, processes=processes, quiet=quiet or number > 0)
        found.put((scans.refused, measured))
    except Exception as error:
        line = in_one_line(error, scans.source if isinstance(scans.source, Path) else None)
        if line is None:
            raise
        found.put(line)


def _use_gpu(number: int) -> None:
    """Shows this process one GPU only. Call it before CUDA starts."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    chosen = visible[number % len(visible)] if visible != [""] else str(number)
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen


def _next(found: Any, workers: Collection[Any]) -> tuple[dict[str, Refused], Measured] | CspineError:
    """The next result. Raises CspineError if a process ended without one."""
    while found.empty():
        for worker in workers:
            worker.join(POLL_SECONDS / len(workers))
            if worker.exitcode not in (None, 0) and found.empty():
                line = f"a process that answers studies ended with status {worker.exitcode}"
                raise CspineError(line, do="run the same command to continue")
    with suppress(EOFError):
        return found.get()
    raise CspineError("a process that answers studies ended", do="run the same command to continue")
