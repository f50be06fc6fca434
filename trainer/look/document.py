"""One HTML file that needs nothing else: tables that sort and filter, and pictures, written as a stream.

A content security policy forbids the network, and any style or script but this file's own. All text is escaped.
"""

import base64
import hashlib
import html
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np

from cache_schema.documents import sync
from cache_schema.errors import naming

STYLE = files("trainer.look").joinpath("document.css").read_text()
SCRIPT = files("trainer.look").joinpath("document.js").read_text()
TYPES = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}
"""first bytes of a picture -> its media type"""
QUALITY = 90
"""of the WebP that a PNG becomes; a third of its bytes or less, with letters that stay sharp"""
POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


RESEARCH_ONLY = "research only, not a medical device"


class Cell(NamedTuple):
    """A table's cell. value: what it is sorted and filtered by; None sorts last."""

    text: str
    value: float | str | None = None
    link: str = ""
    """the anchor of a picture in the same file"""


class Table(NamedTuple):
    name: str
    """the caption; unique in its file"""
    columns: Sequence[str]
    rows: Iterable[Sequence[Cell]]
    flagged: Sequence[bool] | None = None
    """of each row, where rows can be filtered by it"""
    numbers: Sequence[str] = ()
    """columns whose values are probabilities, where rows can be filtered by their highest"""


class Picture(NamedTuple):
    anchor: str
    """unique in its file: letters, digits, dots and dashes"""
    heading: str
    described: str
    """in words, for those who do not see it"""
    image: bytes | Path
    """PNG or WebP, and its file"""


class Document:
    """Collects pictures in a file beside `path`, so that memory stays flat, and writes all of it at the end.

    Use it in a `with` block: an error leaves what was at `path`. notice: a line on every printed page.
    """

    def __init__(self, path: Path, heading: str, about: Iterable[str] = (), notice: str = ""):
        self.path, self.heading, self.about, self.notice = path, heading, list(about), notice
        self.tables: list[Table] = []

    def __enter__(self) -> "Document":
        self._pictures: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.path.parent)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._pictures:
            if kind is None:
                self._write()

    def add(self, picture: Picture) -> None:
        """Below the tables, in the order given. Raises ValueError where it is neither PNG nor WebP."""
        image = picture.image.read_bytes() if isinstance(picture.image, Path) else picture.image
        kind, image, width, height = _encoded(image)
        data = base64.b64encode(image).decode()
        self._pictures.write(
            f'<section class="picture" id="{escaped(picture.anchor)}"><h2>{escaped(picture.heading)}</h2>\n'
            f'<img width="{width}" height="{height}" loading="lazy" decoding="async" alt="{escaped(picture.described)}" '
            f'src="data:{kind};base64,{data}">\n<p class="notice">{escaped(self.notice)} <a href="#top">up</a></p></section>\n'
        )

    def _write(self) -> None:
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            with naming(self.path), part.open("w", encoding="utf-8") as file:
                file.write(self._head())
                for table in self.tables:
                    _write_table(file, table, self.notice)
                file.write('<main id="pictures">\n')
                self._pictures.seek(0)
                shutil.copyfileobj(self._pictures, file)
                file.write(f"</main>\n<script>{SCRIPT}</script>\n</body></html>\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
        sync(self.path.parent)

    def _head(self) -> str:
        policy = POLICY.format(*(_digest(text) for text in (STYLE, SCRIPT)))
        lines = "".join(f"<p>{escaped(line)}</p>\n" for line in self.about)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">\n'
            f'<link rel="icon" href="data:,">\n'
            f"<title>{escaped(self.heading)}</title>\n<style>{STYLE}</style></head>\n"
            f'<body><header id="top"><h1>{escaped(self.heading)}</h1>\n{lines}<p class="notice">{escaped(self.notice)}</p></header>\n'
        )


def escaped(words: object) -> str:
    """Text as it may stand between tags and in attributes."""
    return html.escape(str(words), quote=True)


def _write_table(file: IO[str], table: Table, notice: str) -> None:
    name = escaped(table.name)
    file.write(f'<section class="table"><div class="filters" role="search" aria-label="{name}" hidden>')
    file.write('<label>find <input type="search" class="text"></label>')
    if table.numbers:
        file.write(
            '<label>highest probability at least <input type="number" class="least" min="0" max="1" step="0.05"></label>'
        )
    if table.flagged is not None:
        file.write('<label><input type="checkbox" class="flagged"> flagged only</label>')
    file.write('<output class="count" aria-live="polite"></output></div>\n')
    file.write(f"<table><caption>{name}</caption><thead><tr>")
    for column in table.columns:
        file.write(f'<th scope="col" aria-sort="none"><button type="button">{escaped(column)}</button></th>')
    file.write(
        f'</tr></thead><tfoot><tr><td colspan="{len(table.columns)}">{escaped(notice)}</td></tr></tfoot><tbody>\n'
    )
    for number, row in enumerate(table.rows):
        known = [cell.value for column, cell in zip(table.columns, row, strict=True) if column in table.numbers]
        most = max((float(value) for value in known if value is not None), default=None)
        flagged = table.flagged is not None and table.flagged[number]
        file.write(f'<tr data-flagged="{int(flagged)}" data-most="{"" if most is None else repr(most)}">')
        for cell in row:
            file.write(_cell(cell))
        file.write("</tr>\n")
    file.write("</tbody></table></section>\n")


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.link:
        text = f'<a href="#{escaped(cell.link)}">{text}</a>'
    number = isinstance(cell.value, int | float)
    value = "" if cell.value is None else repr(float(cell.value)) if number else escaped(cell.value)
    return f'<td data-value="{value}"{" class=number" if number else ""}>{text}</td>'


def _encoded(image: bytes) -> tuple[str, bytes, int, int]:
    """Media type, bytes, width, height; PNG becomes WebP."""
    kind = TYPES.get(image[:4])
    pixels = None if kind is None else cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if kind is None or pixels is None:
        raise ValueError("a picture must be PNG or WebP")
    height, width = pixels.shape[:2]
    if kind == "image/png":
        done, small = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        if done and len(small) < len(image):
            kind, image = "image/webp", small.tobytes()
    return kind, image, width, height


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
