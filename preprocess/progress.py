"""Progress on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0


class Steps:
    """Counts studies and their slices; `text` says how many, how fast, and how long it will take."""

    def __init__(self, studies: int, slices: int):
        self.studies, self.slices = studies, slices
        self.done_studies = self.done_slices = 0
        self.began = time.monotonic()

    def advance(self, slices: int) -> None:
        self.done_studies += 1
        self.done_slices += slices

    @property
    def text(self) -> str:
        rate = self.done_slices / max(time.monotonic() - self.began, 1e-6)
        left = f"{(self.slices - self.done_slices) / rate:.0f} s left" if rate else "working"
        return (
            f"{self.done_studies} of {self.studies} studies, {self.done_slices} of {self.slices} slices, "
            f"{rate:.0f} slices/s, {left}"
        )


@contextmanager
def progress_over(studies: int, slices: int) -> Iterator[Steps]:
    """A `Steps` that shows itself while it advances."""
    if sys.stderr.isatty():
        with Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
            yield _Bar(studies, slices, bar)
    else:
        yield _Lines(studies, slices)


class _Bar(Steps):
    def __init__(self, studies: int, slices: int, bar: Progress):
        super().__init__(studies, slices)
        self._bar, self._task = bar, bar.add_task("", total=slices)

    def advance(self, slices: int) -> None:
        super().advance(slices)
        self._bar.update(self._task, advance=slices, description=self.text)


class _Lines(Steps):
    _told = 0.0

    def advance(self, slices: int) -> None:
        super().advance(slices)
        if self.done_studies == self.studies or time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            say(self.text)


def say(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)
