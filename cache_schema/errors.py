"""The errors that a user may see: each is a single line and carries its exit status."""

import difflib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CspineError(Exception):
    """Something the user can correct. Prints as one line: where, what, what was expected, what to do."""

    exit_status = 2

    def __init__(self, what: str, *, where: object = None, expected: object = None, do: str | None = None):
        self.what, self.where, self.expected, self.do = what, where, expected, do
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where is not None else self.what
        if self.expected is not None:
            line += f"; expected {self.expected}"
        if self.do is not None:
            line += f"; {self.do}"
        return " ".join(line.split())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[CspineError], state: dict) -> CspineError:
    """Unpickle without calling a subclass's constructor, so that errors cross process borders whole."""
    error = kind.__new__(kind)
    error.__dict__.update(state)
    Exception.__init__(error, state.get("what", ""))
    return error


class UsageError(CspineError):
    """A wrong command, key, value or path."""


class CacheError(CspineError):
    """A cache or table that is missing, damaged, or of another schema."""

    exit_status = 1


class StudyRefused(CspineError):
    """A study that cannot be cached. `reason` comes from a closed list; the message names no patient."""

    def __init__(self, reason: str, message: str, *, study: str | None = None, file: str | None = None):
        self.reason, self.study, self.file = reason, study, file
        super().__init__(message, where=study)


class StaleStudy(CspineError):
    """A study was replaced on disk while a reader had it open."""


def reason_of(error: OSError) -> str:
    """The system's reason, as part of a line: "no space left on device". Never a path."""
    if error.errno is None:
        return type(error).__name__
    words = os.strerror(error.errno)
    return words[:1].lower() + words[1:]


def advice_on(error: OSError) -> str | None:
    """What to do about a full disk or quota; None for other errors."""
    return "make room, then run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None


def not_utf8(error: UnicodeError) -> UsageError:
    """The error for a name or a text in another encoding; it does not repeat the text."""
    return UsageError(f"a name or a text is not UTF-8 ({type(error).__name__})", do="name folders and files in UTF-8")


def did_you_mean(
    word: str, choices: Iterable[str], *, cutoff: float = 0.5, show: Callable[[str], object] = str
) -> str | None:
    """`did you mean X?`, X being the choice most like `word`; None where none is as like as `cutoff` (0 to 1) asks.

    show: how the choice is written.
    """
    near = difflib.get_close_matches(word, list(choices), 1, cutoff)
    return f"did you mean {show(near[0])}?" if near else None


def did_you_mean_path(path: Path) -> str | None:
    """The same for a path that is not there: the entry of its folder whose name is most like its own."""
    folder = path.parent
    entries = [each.name for each in folder.iterdir() if each != path] if folder.is_dir() else []
    return did_you_mean(path.name, entries, cutoff=0.6, show=lambda name: folder / name)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add this path to errors of writing and flushing, which name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise
