"""Progress on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.1
SECONDS_UNSAID = 1.0
"""what takes less shows no line where it was asked to be brief"""


class Steps:
    """Counts what is done of several things, as of studies and their slices; `text` says how many of each, and how fast
    and how long it will take by the last of them."""

    def __init__(self, doing: str = "", /, **totals: int | None):
        """doing: a word to begin with. totals: of each, None where it is not known."""
        self.doing, self.totals, self.done = doing, totals, dict.fromkeys(totals, 0)
        *_, self.last = totals
        self.began = time.monotonic()

    def advance(self, **more: int) -> None:
        for name, count in more.items():
            self.done[name] += count

    @property
    def has_ended(self) -> bool:
        return self.done[self.last] == self.totals[self.last]

    @property
    def text(self) -> str:
        done, total = self.done[self.last], self.totals[self.last]
        rate = done / max(time.monotonic() - self.began, 1e-6)
        counts = [f"{self.done[name]}{'' if of is None else f' of {of}'} {name}" for name, of in self.totals.items()]
        left = [] if total is None else [f"{(total - done) / rate:.0f} s left" if rate else "working"]
        return (f"{self.doing}: " if self.doing else "") + ", ".join([*counts, f"{rate:.0f} {self.last}/s", *left])


@contextmanager
def progress_over(doing: str = "", /, *, brief: bool = False, **totals: int | None) -> Iterator[Steps]:
    """A `Steps` that shows itself while it advances. brief: for what mostly ends before anybody looks; the bar goes with it."""
    if sys.stderr.isatty():
        columns = BarColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=Console(stderr=True), transient=brief) as bar:
            yield _Bar(bar, doing, totals)
    else:
        yield _Lines(brief, doing, totals)


class _Bar(Steps):
    def __init__(self, bar: Progress, doing: str, totals: dict[str, int | None]):
        super().__init__(doing, **totals)
        self._bar, self._task, self._next = bar, bar.add_task(doing, total=totals[self.last]), self.began

    def advance(self, **more: int) -> None:
        super().advance(**more)
        now = time.monotonic()
        if now > self._next or self.has_ended:  # to draw costs more than to look at a file
            self._next = now + SECONDS_BETWEEN_DRAWINGS
            self._bar.update(self._task, completed=self.done[self.last], description=self.text)


class _Lines(Steps):
    def __init__(self, brief: bool, doing: str, totals: dict[str, int | None]):
        super().__init__(doing, **totals)
        self._brief, self._next = brief, self.began + SECONDS_UNSAID if brief else 0.0

    def advance(self, **more: int) -> None:
        super().advance(**more)
        now = time.monotonic()
        if now > self._next or (self.has_ended and not self._brief):
            self._next = now + SECONDS_BETWEEN_LINES
            say(self.text)


def say(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)
