"""What the commands of this package share: help, one clear line for what the user can mend, and the exit status."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable

from cache_schema.errors import CspineError, UsageError
from cache_schema.places import check_place
from trainer.words import nearest

INTERRUPTED = 130
MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
"""of what the system may refuse: no right, no room, a name that is too long"""
ADDRESSES = ("scheduler",)
"""keys whose values are addresses, not paths"""
SECONDS_BEHIND = 10
"""that another process than the main one waits with a mistake: a launcher ends all of them with the first"""


def say(line: str, file: object = None) -> None:
    """Once, from the main process of however many there are."""
    if is_main():
        print(line, file=file, flush=True)


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def serve(words: list[str], help: str, act: Callable[[list[str]], object], interrupted: str) -> int:
    """Runs a command. Returns its exit status: what `act` returns where that is a number, else 0; what a CspineError
    deserves; or 130 with the line `interrupted`."""
    if not words or {"-h", "--help", "help"} & set(words):
        say(help)
        return 0 if words else 2
    try:
        _check_places(words)
        found = act(words)
    except UsageError as error:
        say(f"error: {error}", sys.stderr)
        if not is_main():
            time.sleep(SECONDS_BEHIND)
        return error.exit_status
    except CspineError as error:  # what one process alone may have met
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr, flush=True)
        return UsageError.exit_status
    except KeyboardInterrupt:
        say(interrupted, sys.stderr)
        return INTERRUPTED
    return found if isinstance(found, int) else 0


def _check_places(words: Iterable[str]) -> None:
    """No word may be an address but the value of a key that asks for one; a key without a rule here has this one."""
    for word in words:
        key, _, value = word.partition("=")
        if key not in ADDRESSES:
            for part in (word, *value.split(",")):
                check_place(part)


def take(words: Iterable[str], place: str, known: Iterable[str], needed: Iterable[str]) -> tuple[str, dict[str, str]]:
    """`PLACE key=value ...` -> (the place, key -> value). Raises UsageError for anything else.

    place: what the first is called. known: keys, and sections as `name.`; with `.` any key of any section.
    """
    words, known = list(words), list(known)
    places = [word for word in words if "=" not in word]
    if len(places) != 1:
        raise UsageError(f"{len(places)} places given", expected=f"one {place}", do="see --help")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for key in given:
        section = key.partition(".")[0] + "." if "." in key else None
        if key not in known and section not in known and not (section and "." in known):
            names = [name for name in known if not name.endswith(".")]
            raise UsageError(f"no setting {key}", do=nearest(key, names))
    for key in needed:
        if key not in given:
            raise UsageError(f"no {key} given", expected=f"{key}={key.upper()}", do="see --help")
    return places[0], given


def one_of(given: dict[str, str], key: str, choices: tuple[str, ...]) -> str:
    """given[key], by default the first choice. Raises UsageError where it is none of them."""
    value = given.get(key, choices[0])
    if value not in choices:
        near = nearest(value, choices)
        do = near if near.startswith("did") else None
        raise UsageError(f"{key}={value} does not fit", expected=" or ".join(choices), do=do)
    return value
