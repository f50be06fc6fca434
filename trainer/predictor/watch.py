"""A folder that studies arrive in: each is answered once it has stopped growing, by networks that stay in memory."""

import csv
import io
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema.documents import digest_of, write_whole
from cache_schema.errors import UsageError
from cache_schema.machine import this_machine
from trainer.answers.answer import Answer
from trainer.answers.kept import load_kept
from trainer.predictor.job import ANSWERS, CARDS, DICOM, Job
from trainer.predictor.pace import Pace, Timer
from trainer.predictor.results import CSV, write_page, write_tables
from trainer.predictor.scans import Scans, arrivals
from trainer.predictor.watch_state import FOLDER, Done, WatchState
from trainer.process.command import say
from trainer.process.heartbeat import Heartbeat
from trainer.trained.models import TrainedModel

if TYPE_CHECKING:
    from trainer.predictor.scans import Planned, Settled, Stray

REFUSED = "refused.csv"
STUDIES_A_ROUND = 8
"""answered between two looks: the tables are written after each round"""
CARDS_ON_THE_PAGE = 100
"""report.html shows the studies answered last: it holds their pictures, and is written anew after each round"""
DEATHS = 5
"""processes that may die on a study before it is refused, so that the others get their answers"""
LOOKING, ANSWERING = 300.0, 3600.0
"""seconds for a step before it counts as hung: a call to a network share; one model on up to eight studies that memory holds
at once, 500 slices each, at most a second a slice on an old CPU"""
BUSY = 4
"""seconds of pause for each second of a look: a file server has other things to do"""


@dataclass
class Watch:
    """quiet: seconds without a change after which a study has stopped growing. every: seconds between two looks."""

    folder: Path
    job: Job
    quiet: int
    every: int
    slices: bool
    answered: dict[str, Answer] = field(default_factory=dict)
    """by id, the last one last, without what the tables do not show"""

    def __post_init__(self) -> None:
        self._heart, self._state = Heartbeat(self.job.out), WatchState(self.job.out)
        self._by = {"models": self.job.models.digest, "settings": dict(self.job.given)}
        self._made_from = digest_of({**self._by, "cards": self.job.cards, "dicom": self.job.dicom})
        self._strays: list[Stray] = []
        self._told: set[str] = set()

    def run(self) -> None:
        """Until a signal ends it."""
        from trainer.predictor.predictor import Predictor

        self._beat_looking()
        for place in (self.job.out, self.job.out / ANSWERS, self.job.out / CARDS):
            for part in place.glob(".*.part"):  # of killed processes
                part.unlink()
        self._load_answers()
        self._arrivals = arrivals(self.folder, self.quiet, self.job.out / FOLDER, self._beat_looking)
        self._machine = self.job.machine or this_machine()
        self._predictor = Predictor(self.job.models, machine=self._machine, **self.job.given)
        if self._predictor.together == 1:
            for model in self.job.models.every:  # before any study can be blamed for a model that cannot be read
                self._beat_looking()
                self._predictor.network(model)
        counts = ", ".join(f"{len(models)} {stage} models" for stage, models in self.job.models.by_stage.items())
        say(
            f"watching {self.folder} every {self.every} s: {counts}; a study is answered {self.quiet} s after its last change"
        )
        for line in self._predictor.computing.lines(self.job.models.every, decoding=0):
            say(line)
        self._write_results()
        try:
            while True:
                self._round()
        finally:
            self._heart.end()

    def _round(self) -> None:
        started = time.monotonic()
        self._beat_looking()
        try:
            self._arrivals.look()
        except UsageError as error:  # not a beat: a share that stays away makes the watch unhealthy
            say(f"{error}; trying again", sys.stderr)
            time.sleep(self.every)
            return
        took = time.monotonic() - started
        waiting = [each for each in self._arrivals.settled() if not self._is_done(each)]
        if self._name_strays():
            self._write_refused()
        if waiting and self._answer(waiting[:STUDIES_A_ROUND]):
            self._write_results()
        if len(waiting) <= STUDIES_A_ROUND:
            pause = max(self.every, BUSY * took)
            self._heart.beat("waiting", LOOKING + pause)
            time.sleep(pause)

    def _is_done(self, study: "Settled") -> bool:
        known = study.uid in self.answered or self._state.is_refused(study.uid)
        return known and self._state.is_done(study.uid, study.files, self._made_from)

    def _answer(self, studies: "Sequence[Settled]") -> bool:
        """Whether something is now known of one of them."""
        with self._arrivals.planned(studies) as planned:
            todo, changed = [], False
            for each in planned:
                uid = each.study.uid
                if each.refusal is not None:
                    self._refuse(each, each.refusal.id, each.refusal.reason, each.refusal.message)
                elif each.plan is None:
                    say("a study has changed while it was read: waiting for it", sys.stderr)
                    continue
                elif self._state.deaths(uid) >= DEATHS:
                    message = f"{DEATHS} processes have died while they answered it"
                    self._refuse(each, each.plan.id, "worker_died", message)
                elif (found := self.job.answer(each.plan.id, each.digest)) is not None:
                    self._keep(each, found)  # the process before was ended in between, or only other files have come
                else:
                    todo.append(each)
                    continue
                changed = True
            return self._answer_together(todo) | changed

    def _answer_together(self, planned: "Sequence[Planned]") -> bool:
        if not planned:
            return False
        by_id = {each.plan.id: each for each in planned if each.plan is not None}
        plans = [each.plan for each in planned if each.plan is not None]
        scans, left = Scans.of_plans(self.folder, plans, {id: each.digest for id, each in by_id.items()}), dict(by_id)
        self._beat_answering()
        timer = Timer(Pace(), scans.decoding_processes(self._machine))
        with closing(self.job.answers(self._predictor, scans, timer, rows=self._beat_answering)) as answers:
            while left:
                first = next(iter(left.values())).study.uid
                self._state.begin(first)
                try:
                    answer = next(answers, None)
                except KeyboardInterrupt:
                    self._state.end(first)  # it is not the study that ends the process
                    raise
                self._state.end(first)
                self._beat_answering()
                for id, refused in scans.refused.items():
                    if id in left and (answer is None or id != answer.id):
                        each = left.pop(id)
                        if refused.reason == "source_changed":
                            say(f"{id}: {refused.message}: waiting for it", sys.stderr)
                        else:
                            self._refuse(each, id, refused.reason, refused.message)
                if answer is None:
                    break
                anew = " anew, for it has changed" if answer.id in self.answered else ""
                self._keep(left.pop(answer.id), answer)
                say(
                    f"{answer.id}: answered{anew} ({answer.record.slices} slices, {sum(answer.seconds.values()):.1f} s)"
                )
                if answer.id in scans.refused:
                    say(f"{answer.id}: {scans.refused[answer.id].message}", sys.stderr)
        return True

    def _keep(self, planned: "Planned", answer: Answer) -> None:
        self._state.keep(planned.study.uid, Done(answer.id, planned.study.files, self._made_from))
        self._take(answer)

    def _take(self, answer: Answer) -> None:
        self.answered.pop(answer.id, None)
        self.answered[answer.id] = replace(answer, curves=None, z=np.empty(0))

    def _refuse(self, planned: "Planned", id: str, reason: str, message: str) -> None:
        """Names it, and removes the answer to an earlier state of it."""
        self._state.keep(planned.study.uid, Done(id, planned.study.files, reason=reason, message=message))
        say(f"{id or 'a study without a usable id'}: refused: {message}", sys.stderr)
        out = self.job.out
        if id and (out / ANSWERS / f"{id}.json").exists():
            places = *(out / ANSWERS).glob("*.json"), *(out / CARDS).glob("*.png"), *(out / DICOM).glob("*/SR.dcm")
            ids = {path.parent.name if path.name == "SR.dcm" else path.stem for path in places}
            self.job.remove_others(ids - {id})
            self.answered.pop(id, None)

    def _name_strays(self) -> bool:
        """Whether the files that no study can use are others than before. New ones are named."""
        strays = self._arrivals.strays()
        new = [each for each in strays if each.key not in self._state.strays]
        for each in new:
            say(f"file {each.number}: refused: {each.message}", sys.stderr)
        gone = self._state.strays != {each.key for each in strays}
        self._strays = strays
        self._state.strays = {each.key for each in strays}
        return gone

    def _load_answers(self) -> None:
        """Those of earlier processes by the same models and settings; the one made last comes last."""
        folder, others = self.job.out / ANSWERS, 0
        for path in sorted(folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            found = load_kept(path)
            if found is not None and {key: found[1].get(key) for key in self._by} == self._by:
                self._take(found[0])
            else:
                others += 1
        if others:
            say(f"{others} answers of other models or settings stay in {folder}, and in no table")

    def _write_results(self) -> None:
        """The tables of all answers, the page of the last ones, and what is refused; each whole."""
        out, answers = self.job.out, [self.answered[id] for id in sorted(self.answered)]
        self._write_refused()
        if not answers:
            return
        self._beat_looking()
        write_tables(out, answers, self.job, None, slices=self.slices, tell=self._tell_once)
        if self.job.cards:
            drawn = [id for id in self.answered if self.job.card(id).is_file()]
            shown = sorted(drawn[-CARDS_ON_THE_PAGE:])
            lines = [f"{id or 'a study'}: {message}" for id, _, message in self._refusals()]
            write_page(self.job, [self.answered[id] for id in shown], lines)
        say(f"{len(answers)} studies: {out / CSV}")

    def _refusals(self) -> list[tuple[str, str, str]]:
        studies = sorted((done.id, done.reason, done.message) for done in self._state.refused.values())
        return [*studies, *((f"file {each.number}", each.reason, each.message) for each in self._strays)]

    def _write_refused(self) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("id", "reason", "message"), *self._refusals()])
        write_whole(self.job.out / REFUSED, text.getvalue().encode())

    def _tell_once(self, lines: str) -> None:
        for line in lines.splitlines():
            if line not in self._told:
                self._told.add(line)
                say(line)

    def _beat_looking(self) -> None:
        self._heart.beat("looking", LOOKING)

    def _beat_answering(self, model: TrainedModel | None = None, table: pd.DataFrame | None = None) -> None:
        """Also after each model: its prediction table is not needed."""
        self._heart.beat("answering", ANSWERING)
