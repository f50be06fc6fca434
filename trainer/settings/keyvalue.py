"""From words of a command and YAML to nested mappings, none of them lost, and the right word nearest to a wrong one."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_schema.errors import UsageError, did_you_mean


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean X?' where something is near, else the choices themselves."""
    choices = list(choices)
    return did_you_mean(word, choices) or "choose from " + ", ".join(choices)


def assignments(words: Iterable[str]) -> dict[str, str]:
    """['a.b=1', '--c=2'] -> {'a.b': '1', 'c': '2'}. Raises UsageError for what is none, and for a key that is given twice."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            raise UsageError(f"cannot read {word!r}", expected="key=value", do="see --help")
        if key in given:
            raise given_twice(f"{key}={given[key]}", f"{key}={value}")
        given[key] = at_home(value)
    return given


def given_twice(first: str, second: str) -> UsageError:
    """Of two `key=value` that say the same setting."""
    key = first.partition("=")[0]
    do = "leave one of them out" if key != "config" else "give several files as config=FILE,FILE"
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
    """A whole number, `what` of. Raises UsageError for anything else, and for one that can only be a mistake."""
    digits = value if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20 else "-1"
    if not least <= int(digits) <= most:
        raise UsageError(f"{name}={value!r:.80} does not fit", where=where, expected=f"{what} from {least} to {most}")
    return int(digits)


def at_home(value: str) -> str:
    """A shell leaves `key=~/x` as it is where it expands `~/x`; here both are the same."""
    return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value


def split_files(text: str, folder: Path = Path()) -> list[Path]:
    """'a.yaml,b.yaml' -> the files, relative ones as they are named in `folder`. A comma may be part of a name that is there."""
    parts, files = text.split(","), []
    while parts:
        names = [(count, at_home(",".join(parts[:count]))) for count in range(len(parts), 0, -1)]
        there = ((count, name) for count, name in names if os.path.isfile(folder / name))
        count, name = next(there, (1, at_home(parts[0].strip())))
        files.append(folder / name)
        parts = parts[count:]
    return files


class _Loader(yaml.BaseLoader):
    """Every scalar is a string. What one key would take from another in silence is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise _Lost(f"{name} is given twice, in line {lines[name]} and in line {line}", line)
            if name == "<<":
                raise _Lost("merges (<<) are not read; write the keys out", line)
            lines[name] = line
        return super().construct_mapping(node, deep)


class _Lost(Exception):
    """(what, line)"""


def read_yaml(path: Path, what: str = "settings") -> dict[str, Any]:
    """A YAML mapping with every scalar as a string, so that `01` stays `01` until pydantic types it. what: it holds.

    Raises UsageError, naming the line, where it is none, and for a key that is given twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        line = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UsageError(line, where=path, expected=f"a YAML file of {what}") from None
    except UnicodeDecodeError:
        raise UsageError("is no text", where=path, expected=f"a YAML file of {what}") from None
    except _Lost as error:
        raise UsageError(error.args[0], where=f"{path}, line {error.args[1]}") from None
    except RecursionError:
        raise UsageError("is nested too deep", where=path, expected=f"a YAML file of {what}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise UsageError(f"not valid YAML at line {line}" + f" ({problem})" * bool(problem), where=path) from None
    if not isinstance(content, dict):
        raise UsageError(f"does not hold {what}", where=path, expected="a mapping of key to value")
    return content


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key."""
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
    """{'a': {'b': 1}, 'c': None} -> {'a.b': 1, 'c': ''}: names and plain values, as trackers want them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = "" if value is None else value
    return found
