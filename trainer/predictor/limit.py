"""`limit=9h`: which models answer in the time there is, decided once by what the first studies took, and kept in OUT."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.documents import canonical_json, digest_of, write_whole
from cache_schema.errors import UsageError
from trainer.predictor.pace import Measured, Pace

FILE = "limit.json"
VERSION = 1
SECONDS = {"h": 3600, "m": 60, "s": 1}
MEASURED = 3
"""studies of each process, after a first one for what happens once"""
SPARE = 0.1
"""of the time that is expected: the other studies may be slower than the measured ones"""
ENDING, MOST_ENDING = 0.05, 300.0
"""of the limit, and at most so many seconds: for the last study, and for writing the results"""


def seconds_of(text: str) -> float:
    """'9h', '90m' or '3600s' -> seconds. Raises UsageError for another text."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([hms])", text)
    if found is None or not float(found[1]):
        raise UsageError(f"limit={text!r:.80} does not fit", expected="a time such as 9h, 90m or 3600s")
    return float(found[1]) * SECONDS[found[2]]


def in_words(seconds: float) -> str:
    """'8.2 h', '14.0 min' or '3.1 s'."""
    name, unit = next(((name, unit) for name, unit in (("h", 3600), ("min", 60)) if seconds >= 2 * unit), ("s", 1))
    return f"{seconds / unit:.1f} {name}"


class Limit(NamedTuple):
    """The time of one command. It counts from the command's start: the session that runs it begins anew, too."""

    seconds: float
    clock: Callable[[], float]
    started: float

    @property
    def until(self) -> float:
        """When the last study should have ended."""
        return self.started + self.seconds - min(MOST_ENDING, ENDING * self.seconds)

    @property
    def left(self) -> float:
        return self.until - self.clock()

    def pace(self, rate: float = 0.0) -> Pace:
        return Pace(self.clock, self.until, rate)


class Decision(NamedTuple):
    """Which models do not answer, for all studies of a source."""

    left_out: tuple[str, ...]
    rate: float
    """seconds that a slice is expected to take with the others, in one process"""


class Outlook(NamedTuple):
    """What is known when the decision is made."""

    measured: Measured
    """of all models"""
    slices: int
    """of all studies that are still to be answered by all models"""
    every: int
    """of all studies: a smaller set answers each of them anew"""
    processes: int
    left: float
    """seconds"""

    def expected(self, left_out: Sequence[str]) -> float:
        """Seconds that the rest takes without these models, with starting and loading again."""
        slices = self.every if left_out else self.slices
        return self.measured.start + self.measured.rate(left_out) * slices / self.processes

    def decide(self, order: Sequence[str]) -> Decision:
        """The fewest models left out, in this order, so that the rest fits the time; all of them where nothing fits."""
        for count in range(len(order) + 1):
            left_out = tuple(order[:count])
            if self.fits(left_out):
                break
        return Decision(left_out, self.measured.rate(left_out))

    def fits(self, left_out: Sequence[str]) -> bool:
        return self.expected(left_out) * (1 + SPARE) <= self.left

    def lines(self, decision: Decision, models: int) -> list[str]:
        """What was measured, what is expected, and what is left out. models: the number of all."""
        measured, left_out = self.measured, decision.left_out
        took = f"{measured.studies} studies with {measured.slices} slices took {in_words(measured.seconds)}"
        said = [
            f"limit: {took} with all {models} models; the rest will take {in_words(self.expected(()))}, "
            f"and {in_words(max(0.0, self.left))} are left"
        ]
        others = f"the other {models - len(left_out)}" if left_out else f"all {models}"
        if left_out:
            line = f"limit: leaves out {', '.join(left_out)}; the others answer all studies, the first ones again"
            said.append(f"{line}: {in_words(self.expected(left_out))}")
        if not self.fits(left_out):
            line = f"limit: even {others} models, the fewest, will not be done in time"
            said.append(f"{line}: goes on with them, until the time is over")
        return said


def save_decision(out: Path, decision: Decision, made_from: Mapping[str, Any]) -> None:
    document = {"version": VERSION, "made_from": dict(made_from), "decision": decision._asdict()}
    write_whole(out / FILE, canonical_json(document | {"digest": digest_of(document)}))


def load_decision(out: Path, made_from: Mapping[str, Any]) -> Decision | None:
    """None if there is none, if it was made from something else, or if it is damaged."""
    try:
        document = json.loads((out / FILE).read_bytes())
        digest = document.pop("digest")
        if digest == digest_of(document) and (document["version"], document["made_from"]) == (VERSION, made_from):
            return Decision(tuple(document["decision"]["left_out"]), float(document["decision"]["rate"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
