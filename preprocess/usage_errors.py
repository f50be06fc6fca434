"""Wrong commands, options and paths, each as one line that names the nearest right one."""

from itertools import pairwise
from typing import Any

import typer

from cache_schema.errors import CspineError, did_you_mean
from cache_schema.places import check_place

ClickException: Any = next(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)
"""of the copy of click that typer brings"""


def check_command(name: str, known: list[str]) -> None:
    """Raises CspineError for a command that there is not."""
    if name not in known:
        raise CspineError(f"no command {name!r}", expected=", ".join(known), do=did_you_mean(name, known))


def check_places(command: Any, words: list[str]) -> None:
    """Raises UsageError where a word is an address, and its parameter names none in its metavar or its help.

    A path, a CSV or a number: what a parameter is for does not matter, so that a new one cannot be forgotten.
    """
    asking = {option for each in command.params if _may_be_address(each) for option in each.opts}
    flags = {option for each in command.params if getattr(each, "is_flag", False) for option in each.opts}
    places = iter([each for each in command.params if not each.opts[0].startswith("-")])
    for before, word in pairwise(["", *words]):
        if word.startswith("-"):
            option, _, value = word.partition("=")
            asked = option in asking
        elif before.startswith("-") and "=" not in before and before not in flags:
            value, asked = word, before in asking
        else:
            value, argument = word, next(places, None)
            asked = argument is not None and _may_be_address(argument)
        if not asked:
            check_place(value)


def _may_be_address(parameter: Any) -> bool:
    return "://" in f"{parameter.metavar}{getattr(parameter, 'help', '')}"


def wrong_words(error: Any) -> str:
    """What a ClickException says, in one line."""
    option = getattr(error, "option_name", None)
    if option is None:
        return error.format_message().rstrip(".")
    known = [name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")]
    return str(CspineError(f"no option {option}", expected=", ".join(known), do=did_you_mean(option, known)))
