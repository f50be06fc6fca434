"""What all commands share: help, one-line errors, exit status, and parsing of their words."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TextIO

from cache_schema.errors import UsageError, did_you_mean
from cache_schema.output import OUTPUT, drop_output, lost_output, open_output
from cache_schema.places import check_place
from trainer.process import machines
from trainer.process.ending import answered
from trainer.process.faults import in_one_line, quiet_threads
from trainer.settings.keyvalue import assignments, expand_user, require_known

INTERRUPTED, READER_GONE = 130, 1
ADDRESSES = ("scheduler", "cache", "source")
"""keys whose values are URLs, not paths"""
SECONDS_BEHIND = 10
"""delay before a process that prints no error exits on it: a launcher ends all processes of its machine with the first"""
ASSIGNMENT = re.compile(r"-*[A-Za-z_][A-Za-z0-9_.]*=")


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line, from the main process only."""
    if is_main():
        print(line, file=file, flush=True)


@cache
def warn_once(line: str) -> None:
    """Prints a line on standard error, the first time that it is given."""
    say(line, sys.stderr)


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def serve(words: list[str], help: str, act: Callable[[list[str]], object], interrupted: str) -> int:
    """Runs a command and returns its exit status: the number that `act` returns, else 0; on a CspineError its own status; on
    an error of the operating system 2; on a closed output pipe 1, without a message; on SIGINT 130 and on SIGTERM 143, with
    the line `interrupted`."""
    open_output()
    told: list[int] = []
    try:
        with answered(lambda: _tell_interrupted(interrupted)) as told, quiet_threads():
            status = _served(words, help, act)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (told and isinstance(error, Exception)):
            _tell_interrupted(interrupted)
            status = 128 + told[0] if told else INTERRUPTED
        else:
            status = _failed(error, _scans(words))
    if (lost := lost_output()) is None:
        return status
    lost.filename = OUTPUT
    return _failed(lost, None)


def _served(words: list[str], help: str, act: Callable[[list[str]], object]) -> int:
    if not words or {"-h", "--help", "help"} & set(words):
        say(help)
        return 0 if words else 2
    _check_places(words)
    found = act(words)
    return found if isinstance(found, int) else 0


def _failed(error: BaseException, scans: Path | None) -> int:
    """Prints the error in one line and returns the exit status. Raises it again if it is a bug."""
    if isinstance(error, OSError) and error.filename == OUTPUT:
        drop_output()
        if isinstance(error, BrokenPipeError):
            machines.failed("the reader of its output has closed it")
            return READER_GONE
    line = in_one_line(error, scans)
    if line is None:
        machines.failed_by(error)
        raise error
    machines.failed(str(line))
    for_all = isinstance(line, UsageError)  # other errors may have happened in one process only
    _tell(f"error: {line}", everyone=not for_all)
    if for_all and not machines.is_first_here():
        time.sleep(SECONDS_BEHIND)
    return line.exit_status


def _tell_interrupted(line: str) -> None:
    machines.failed(line)
    _tell(line, everyone=False)


def _tell(line: str, *, everyone: bool = True) -> None:
    """Prints on standard error, which may be a file on a full disk. everyone: not only the first process of each machine."""
    with suppress(OSError):
        if everyone or machines.is_first_here():
            print(line, file=sys.stderr, flush=True)


def _scans(words: Iterable[str]) -> Path | None:
    """The folder of DICOM files given as source= or watch=."""
    given = [word.partition("=")[2] for word in words if word.lstrip("-").startswith(("source=", "watch="))]
    return Path(expand_user(given[0])) if given else None


def _check_places(words: Iterable[str]) -> None:
    """Raises UsageError for a URL, unless it is the value of a key in ADDRESSES."""
    for word in words:
        key, _, value = word.partition("=")
        if key not in ADDRESSES:
            for part in (word, *value.split(",")):
                check_place(part)


def split_words(
    words: Iterable[str], place: str, known: Iterable[str], needed: Iterable[str]
) -> tuple[str, dict[str, str]]:
    """`PLACE key=value ...` -> (PLACE, key -> value). Raises UsageError for anything else.

    place: name of the positional word in messages. known: keys, and sections as `name.`; `.` allows all sections.
    """
    words, known = list(words), list(known)
    places = [word for word in words if not ASSIGNMENT.match(word)]
    if len(places) != 1:
        raise UsageError(f"{len(places)} places given", expected=f"one {place}", do="see --help")
    given = assignments(word for word in words if ASSIGNMENT.match(word))
    for key in given:
        section = key.partition(".")[0] + "." if "." in key else None
        if section not in known and not (section and "." in known):
            require_known(key, [name for name in known if not name.endswith(".")], f"no setting {key}")
    for key in needed:
        if key not in given:
            raise UsageError(f"no {key} given", expected=f"{key}={key.upper()}", do="see --help")
    return expand_user(places[0]), given


def one_of(given: dict[str, str], key: str, choices: tuple[str, ...]) -> str:
    """given[key]; the first choice if it is not given. Raises UsageError for a value that is not a choice."""
    value = given.get(key, choices[0])
    if value not in choices:
        do = did_you_mean(value, choices)
        raise UsageError(f"{key}={value} does not fit", expected=" or ".join(choices), do=do)
    return value
