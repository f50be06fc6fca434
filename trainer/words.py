"""From words of a command and YAML to nested mappings, and the right word nearest to a wrong one."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_schema.errors import UsageError


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean X?' where something is near, else the choices themselves."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose from " + ", ".join(choices)


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """['a.b=1', 'c=2'] -> {'a': {'b': '1'}, 'c': '2'}."""
    nested: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            raise UsageError(f"cannot read {word!r}", expected="key=value", do="see --help")
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"{key}: {parent} is a value, not a section")
        place[last] = value
    return nested


def read_yaml(path: Path, what: str = "settings") -> dict[str, Any]:
    """A YAML mapping with every scalar as a string, so that `01` stays `01` until pydantic types it. what: it holds."""
    try:
        content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except OSError as error:
        line = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UsageError(line, where=path, expected=f"a YAML file of {what}") from None
    except UnicodeDecodeError:
        raise UsageError("is no text", where=path, expected=f"a YAML file of {what}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UsageError(f"not valid YAML at line {line}", where=path) from None
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
