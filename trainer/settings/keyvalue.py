"""`key=value` words and YAML files as nested mappings of strings; a repeated key is an error."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from cache_schema.errors import UsageError, did_you_mean


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean X?' for the closest choice, or the list of choices if none is close."""
    choices = list(choices)
    return did_you_mean(word, choices) or "choose from " + ", ".join(choices)


def require_known(word: str, choices: Iterable[str], what: str, where: object = None) -> None:
    """Raises UsageError `what`, with the closest choice, if the word is none of the choices."""
    choices = list(choices)
    if word not in choices:
        raise UsageError(what, where=where, do=nearest(word, choices))


def assignments(words: Iterable[str]) -> dict[str, str]:
    """['a.b=1', '--c=2'] -> {'a.b': '1', 'c': '2'}. Raises UsageError for other words and for a repeated key."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            raise UsageError(f"cannot read {word!r}", expected="key=value", do="see --help")
        if key in given:
            raise given_twice(f"{key}={given[key]}", f"{key}={value}")
        given[key] = expand_user(value)
    return given


def given_twice(first: str, second: str) -> UsageError:
    """The error for two `key=value` words that set the same setting."""
    key = first.partition("=")[0]
    do = "remove one of them" if key != "config" else "give several files as config=FILE,FILE"
    return UsageError(f"{key} is given twice, as {first} and as {second}", do=do)


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """['a.b=1', 'c=2'] -> {'a': {'b': '1'}, 'c': '2'}."""
    nested: dict[str, Any] = {}
    for key, value in assignments(words).items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"{key}: {parent} is a value, not a section")
        if last in place:
            raise UsageError(f"{key} is a section", expected=f"{key}.<setting>=value")
        place[last] = value
    return nested


def whole(value: object, name: str, least: int, most: int, where: object = None, what: str = "a whole number") -> int:
    """An integer from `least` to `most`. Raises UsageError for anything else. what: how the error calls the value."""
    digits = value if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20 else "-1"
    if not least <= int(digits) <= most:
        raise UsageError(f"{name}={value!r:.80} does not fit", where=where, expected=f"{what} from {least} to {most}")
    return int(digits)


def expand_user(value: str) -> str:
    """Expands a leading `~`, which a shell does not do within `key=~/x`."""
    return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value


def split_files(text: str, folder: Path = Path()) -> list[Path]:
    """'a.yaml,b.yaml' -> their paths, relative to `folder`. A comma may be part of the name of an existing file."""
    parts, files = text.split(","), []
    while parts:
        names = [(count, expand_user(",".join(parts[:count]))) for count in range(len(parts), 0, -1)]
        there = ((count, name) for count, name in names if os.path.isfile(folder / name))
        count, name = next(there, (1, expand_user(parts[0].strip())))
        files.append(folder / name)
        parts = parts[count:]
    return files


class _Loader(yaml.BaseLoader):
    """Reads every scalar as a string. Repeated keys and merge keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                problem = f"{name} is given twice, in line {lines[name]} and in line {line}"
                raise ConstructorError(problem=problem, problem_mark=key.start_mark)
            if name == "<<":
                raise ConstructorError(problem="merge keys (<<) are not supported", problem_mark=key.start_mark)
            lines[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str = "settings") -> dict[str, Any]:
    """A YAML mapping with every scalar as a string: `01` stays `01` until pydantic converts it.

    what: the kind of content, for error messages. Raises UsageError for any other content, with its line where known.
    """
    expected = f"a YAML file of {what}"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UsageError("no such file", where=path, expected=expected) from None
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=path, expected=expected) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=path, expected=expected) from None
    except RecursionError:
        raise UsageError("is nested too deeply", where=path, expected=expected) from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise UsageError(f"not valid YAML at line {line}" + f" ({problem})" * bool(problem), where=path) from None
    if not isinstance(content, dict):
        raise UsageError(f"does not hold {what}", where=path, expected="a mapping of key to value")
    return content


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged key by key; later layers override earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                below = merged.get(key)
                merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}, 'c': None} -> {'a.b': 1, 'c': ''}: dotted names and plain values, for trackers."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = "" if value is None else value
    return found
