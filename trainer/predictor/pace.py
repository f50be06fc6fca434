"""The time that studies take, and whether there is enough left for another one."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache_schema import Study


@dataclass(frozen=True)
class Pace:
    """How long a process may answer studies. The clock counts seconds, alike in all processes."""

    clock: Callable[[], float] = time.monotonic
    until: float = math.inf
    """no study is begun that is expected to end later"""
    rate: float = 0.0
    """seconds for each slice, as far as it is known"""


@dataclass(frozen=True)
class Measured:
    """What some studies took with all models, added up over the processes that answered them at the same time."""

    studies: int = 0
    slices: int = 0
    seconds: float = 0.0
    """from one answer to the next"""
    models: Mapping[str, float] = field(default_factory=dict)
    """of these, by model"""
    decoding: float = 0.0
    """that decoding takes beside the networks: of one study after another, divided by the decoding processes"""
    start: float = 0.0
    """until the first answer, which is not among them: imports, loading, and whatever happens once"""

    def __add__(self, other: "Measured") -> "Measured":
        models, more = self.models, other.models
        return Measured(
            self.studies + other.studies,
            self.slices + other.slices,
            self.seconds + other.seconds,
            {name: models.get(name, 0.0) + more.get(name, 0.0) for name in models.keys() | more.keys()},
            self.decoding + other.decoding,
            max(self.start, other.start),
        )

    def rate(self, left_out: Iterable[str] = ()) -> float:
        """Seconds for each slice in one process, without these models. Needs at least one study."""
        fewer = sum(self.models.get(name, 0.0) for name in left_out)
        return max(self.seconds - fewer, self.decoding) / self.slices


class Timer:
    """Measures one process's studies in their turn, and lets no study begin that would end too late."""

    def __init__(self, pace: Pace, decoding_processes: int):
        self._pace, self.decoding_processes = pace, decoding_processes
        self._began = self._last = pace.clock()
        self._waiting = 0
        self._models: Mapping[str, float] = {}
        self._answered = 0
        self.measured = Measured()
        """without the first study"""

    def in_time(self, studies: Iterable["Study"]) -> Iterator["Study"]:
        """The studies, up to the first that would end too late. Several may be taken before they are answered."""
        for study in studies:
            slices = self._waiting + study.record.slices
            if self._pace.clock() + slices * self._rate() > self._pace.until:
                return
            self._waiting = slices
            yield study
            del study

    def answered(self, study: "Study", models: Mapping[str, float]) -> None:
        """To be called after each study, in their order. models: the seconds of each model so far."""
        now, slices, so_far = self._pace.clock(), study.record.slices, dict(models)
        self._waiting -= slices
        if self._answered:
            decoding = getattr(study.pixels, "seconds", 0.0) / max(1, self.decoding_processes)
            spent = {name: seconds - self._models.get(name, 0.0) for name, seconds in so_far.items()}
            self.measured += Measured(1, slices, now - self._last, spent, decoding)
        else:
            self.measured += Measured(start=now - self._began)
        self._answered += 1
        self._last, self._models = now, so_far

    def _rate(self) -> float:
        return self.measured.rate() if self.measured.slices else self._pace.rate
