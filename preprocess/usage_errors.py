"""Wrong commands, options and paths, each as one line that names the nearest right one."""

from itertools import pairwise
from typing import Any

import typer

from cache_schema.errors import CspineError, did_you_mean
from cache_schema.places import check_place

ClickException: Any = next(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)
"""typer brings its own copy of click, or uses click's, by version"""


def check_command(name: str, known: list[str]) -> None:
    """Raises CspineError for a command that there is not."""
    if name not in known:
        raise CspineError(f"no command {name!r}", expected=", ".join(known), do=did_you_mean(name, known))


def check_places(command: Any, words: list[str]) -> None:
    """Raises UsageError where a word is an address and not the value of an option that asks for one by its metavar.

    A path, a CSV or a number: what a parameter is for does not matter, so that a new one cannot be forgotten.
    """
    asking = {option for each in command.params if "://" in (each.metavar or "") for option in each.opts}
    for before, word in pairwise(["", *words]):
        option, _, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if option not in asking and before not in asking:
            check_place(value)


def wrong_words(error: Any) -> str:
    """What a ClickException says, in one line."""
    option = getattr(error, "option_name", None)
    if option is None:
        return error.format_message().rstrip(".")
    known = [name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")]
    return str(CspineError(f"no option {option}", expected=", ".join(known), do=did_you_mean(option, known)))
