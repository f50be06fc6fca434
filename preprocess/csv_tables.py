"""CSV files of one row a study, read so that no value ever lands under another column or study.

What spreadsheets and scripts add (a byte order mark, quotes, blanks, empty lines, a comma at the end of every row) is
read; what may mean something else than it seems to is refused by its line.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.errors import UsageError, did_you_mean
from cache_schema.layout import is_valid_id

ID_COLUMN = "StudyInstanceUID"
SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}
NEWLINE = re.compile(rb"\r\n?|\n")
BLANKS = " \t\0"
"""what may stand beside a UID, which DICOM pads to an even length (PS3.5 9.1)"""

_Numbered = tuple[int, list[str]]
"""the line that a row begins in, and its cells"""


class StudyRow(NamedTuple):
    """line: where it stands in the file. values: in the order of the columns asked for."""

    line: int
    values: tuple[Any, ...]


def read_by_study(
    path: Path, columns: tuple[str, ...], value: Callable[[str], Any], rename: Callable[[str], str] = str
) -> tuple[dict[str, StudyRow], str]:
    """(id -> its row, sha256 of the file's bytes); `rename` turns a UID, blanks beside it taken off, into an id.

    value: what a cell's text means, a ValueError with the end of a sentence where nothing. Other columns are left
    aside, rows that say the same of a study are one. Raises UsageError with file and line.
    """
    if not path.is_file():
        raise UsageError("no such file", where=path, expected="a CSV file")
    data = path.read_bytes()
    rows = list(_rows(path, _text(path, data)))
    if not rows:
        raise UsageError("is not a readable CSV file: it is empty", where=path)
    names, rows = rows[0], rows[1:]
    places = _places(path, names, (ID_COLUMN, *columns))
    _check_widths(path, len(names[1]), rows, open_end=not names[1][-1].strip())
    found: dict[str, StudyRow] = {}
    for line, cells in rows:
        uid, *texts = (cells[place].strip().strip(BLANKS) for place in places)
        if not uid or '"' in uid:
            what = "there is a quotation mark in" if uid else "a row has no"
            raise UsageError(f"{what} {ID_COLUMN}", where=at(path, line))
        id = rename(uid)
        values = tuple(_value(path, line, id, *cell, value) for cell in zip(columns, texts, strict=True))
        earlier = found.setdefault(id, StudyRow(line, values))
        if earlier.values != values:
            raise UsageError(f"{shown(id)} has values that differ from line {earlier.line}", where=at(path, line))
    return found, hashlib.sha256(data).hexdigest()


def at(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def shown(id: str) -> str:
    """The id; a placeholder if the cell holds no valid id, since it may be a name."""
    return id if is_valid_id(id) else "the study"


def _text(path: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError("is in UTF-16", where=path, expected="CSV in UTF-8")
    if b"\0" in data:
        raise UsageError("holds a NUL byte", where=at(path, _line(data, data.index(b"\0"))), expected="CSV in UTF-8")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            "is not in UTF-8", where=at(path, _line(data, error.start)), expected="CSV in UTF-8"
        ) from error


def _line(data: bytes, place: int) -> int:
    return len(NEWLINE.findall(data[:place])) + 1


def _rows(path: Path, text: str) -> Iterator[_Numbered]:
    """All rows but empty ones, the names first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quotation mark is not closed, or there is text beside one"
            raise UsageError(what, where=at(path, line)) from error
        if not any(cell.strip() for cell in cells):
            continue
        width = width or len(cells)
        # a quotation mark left open takes the rows up to the next one into its cell
        if any(part.count(",") >= width - 1 for cell in cells for part in cell.splitlines()[1:]):
            raise UsageError("a cell in quotation marks holds whole rows", where=at(path, line))
        yield line, cells


def _places(path: Path, names: _Numbered, columns: tuple[str, ...]) -> list[int]:
    """Where the columns columns are."""
    line, there = names[0], [name.strip() for name in names[1]]
    plain = {each.casefold(): each for each in there if each}
    for name in columns:
        if name not in there:
            do = did_you_mean(name.casefold(), plain, cutoff=0.8, show=lambda near: repr(plain[near]))
            expected = ", ".join(columns)
            what = f"has no column {name}"
            if name == ID_COLUMN and (separator := _separator(names[1])):
                what, expected = f"its cells are separated by {separator}", "commas"
            raise UsageError(what, where=at(path, line), expected=expected, do=do)
    twice = [name for name in there if name and there.count(name) > 1]
    if twice:
        raise UsageError(f"column {twice[0]} occurs twice", where=at(path, line))
    return [there.index(name) for name in columns]


def _separator(cells: list[str]) -> str | None:
    text = ",".join(cells)
    return next((word for mark, word in SEPARATORS.items() if ID_COLUMN in map(str.strip, text.split(mark))), None)


def _check_widths(path: Path, width: int, rows: list[_Numbered], *, open_end: bool) -> None:
    """Raises UsageError unless all rows are as wide as the names, but for one comma at the end of all rows, or of the
    names."""
    if rows and all(len(cells) == width + 1 and not cells[-1].strip() for _, cells in rows):
        return
    if open_end and all(len(cells) == width - 1 for _, cells in rows):
        return
    for line, cells in rows:
        if len(cells) != width:
            raise UsageError(f"{len(cells)} cells for {width} column names", where=at(path, line))


def _value(path: Path, line: int, id: str, column: str, text: str, value: Callable[[str], Any]) -> Any:
    try:
        return value(text)
    except ValueError as error:
        raise UsageError(f"{column} of {shown(id)} is {error}", where=at(path, line)) from None
