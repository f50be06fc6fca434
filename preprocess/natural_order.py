"""Natural order of file names: `9.dcm` before `10.dcm`."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter

Run = tuple[str, list[str]]
"""a folder, and names of files in it"""


def natural_key(text: str) -> list:
    """A sort key in which runs of digits count as numbers; the text itself decides between `01` and `1`."""
    parts = re.split(r"(\d+)", text)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, text)]


def runs_in_natural_order(
    top: str, files: Mapping[str, Sequence[str]], folders: Mapping[str, Sequence[str]]
) -> Iterator[Run]:
    """All files from `top` on in the natural order of their paths.

    files, folders: names of those in each folder, by its path. A key takes twenty times the room of a name, so there are
    only those of one folder at a time.
    """
    waiting: list[Run | list[str]] = [[top]]
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            yield part
        elif len(part) == 1:
            waiting.extend(reversed(_parts(part[0], files, folders)))
        else:
            yield from _merged([runs_in_natural_order(each, files, folders) for each in part])


def _parts(
    folder: str, files: Mapping[str, Sequence[str]], folders: Mapping[str, Sequence[str]]
) -> list[Run | list[str]]:
    """Runs of its files and its folders, in order; folders together whose names are the same but for leading zeros."""
    entries = sorted((*files.get(folder, ()), *(f"{name}/" for name in folders.get(folder, ()))), key=natural_key)
    parts: list[Run | list[str]] = []
    for alike, members in groupby(entries, key=lambda entry: _without_zeros(entry) if entry.endswith("/") else ""):
        names = list(members)
        parts.append([os.path.join(folder, name[:-1]) for name in names] if alike else (folder, names))
    return parts


def _without_zeros(name: str) -> str:
    return re.sub(r"\d+", lambda run: str(int(run[0])), name)


def _merged(several: Sequence[Iterator[Run]]) -> Iterator[Run]:
    files = (((folder, name) for folder, names in runs for name in names) for runs in several)
    for folder, members in groupby(merge(*files, key=lambda file: natural_key("/".join(file))), key=itemgetter(0)):
        yield folder, [name for _, name in members]
