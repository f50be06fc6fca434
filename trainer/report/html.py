"""report.html: a whole run of prediction in one file that needs nothing else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cache_schema import TARGETS
from trainer.answers.answer import Answer
from trainer.look.document import RESEARCH_ONLY, Cell, Document, Picture, Table

COLUMNS = ("study", "any", *TARGETS[1:], "flags")


class Summary(NamedTuple):
    """What the report's table shows of an answer: all that is kept of it."""

    id: str
    probabilities: dict[str, float | None]
    """None for a level outside the field of view"""
    flags: tuple[str, ...]


def summary(answer: Answer) -> Summary:
    return Summary(answer.id, answer.probabilities, tuple(flag.sentence for flag in answer.flags))


def write_report(
    path: Path,
    entries: Iterable[tuple[Summary, bytes | Path]],
    heading: str = "Cervical spine: probabilities of fractures",
    about: Sequence[str] = (),
) -> None:
    """Writes one HTML file, whole or not at all. Memory holds one card at a time.

    entries: a summary and its card (PNG, or its file), taken one by one. about: lines below the heading.
    """
    rows: list[list[Cell]] = []
    flagged: list[bool] = []
    with Document(path, heading, about, RESEARCH_ONLY) as document:
        for number, (entry, card) in enumerate(entries):
            anchor = f"card-{number}"
            rows.append(_row(entry, anchor))
            flagged.append(bool(entry.flags))
            document.add(Picture(anchor, entry.id, _described(entry), card))
        document.tables.append(Table("Studies", COLUMNS, rows, flagged, COLUMNS[1:-1]))


def _row(entry: Summary, anchor: str) -> list[Cell]:
    values = [entry.probabilities[target] for target in TARGETS]
    cells = [Cell("outside" if value is None else f"{value:.3f}", value) for value in values]
    words = " ".join(entry.flags)
    return [Cell(entry.id, entry.id, anchor), *cells, Cell(words, words or None)]


def _described(entry: Summary) -> str:
    """The card in words."""
    known = [f"{target} {value:.3f}" for target, value in entry.probabilities.items() if value is not None]
    flags = f" Flags: {' '.join(entry.flags)}" if entry.flags else " No flags."
    return f"Card of study {entry.id}. Probabilities: {', '.join(known)}.{flags}"
