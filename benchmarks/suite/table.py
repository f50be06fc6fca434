"""A run of the throughput table in words: for the terminal, and for the README."""

from statistics import median

from benchmarks.rounds import Ratio, table
from benchmarks.suite.run import BYTES, OURS, ROWS, Run

NONE = "-"
HEAD = ("way", *(row.title for row in ROWS.values()), "disk")


def rows_of(run: Run) -> list[tuple[str, ...]]:
    """One for cspine with its rates, then one for each way with its costs over cspine's."""
    first = [OURS, *(_rate(run, row) for row in ROWS), _kilobytes(run.ways[OURS].bytes)]
    return [tuple(first), *((way, *(_factor(run, row, way) for row in ROWS), _disk(run, way)) for way in run.others())]


def text(run: Run) -> str:
    """For the terminal: the table, what is missing and why, and what each way does otherwise."""
    lines = [heading(run), "", table("", HEAD, rows_of(run)).lstrip("\n"), LEGEND, ""]
    for name, way in run.ways.items():
        if way.note:
            lines.append(f"{name}: {way.note}")
        for reason in dict.fromkeys(way.missing.values()):
            rows = [_title(row) for row, why in way.missing.items() if why == reason]
            lines.append(f"{name}, {' and '.join(rows) if len(rows) < len(ROWS) else 'all'}: {reason}")
        if way.difference is not None and name != OURS:
            mean, most = way.difference
            lines.append(
                f"{name}: pixels differ from cspine's by {mean:.2f} of 255 steps on average, {most:.0f} at most"
            )
    return "\n".join(lines)


def markdown(run: Run) -> str:
    """For the README: the table and where it comes from."""
    rows = [HEAD, tuple("---" for _ in HEAD), *rows_of(run)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", LEGEND, "", heading(run)])


LEGEND = (
    "First row: cspine's own rates: items per CPU-second, with 2 workers per second; seconds to the first batch; kB a slice. "
    "Others: their cost over cspine's, median and range of paired rounds; above 1 cspine is cheaper. "
    "A window has 96 slices, a triplet 3."
)


def heading(run: Run) -> str:
    load = f"{min(run.load):.1f} to {max(run.load):.1f}" if run.load else "unknown"
    machine = ", ".join(run.machine.values())
    return f"`make bench`, commit {run.commit}, {run.date}, {machine}, load {load}."


def _title(row: str) -> str:
    return "disk" if row == BYTES else ROWS[row].title


def _rate(run: Run, row: str) -> str:
    rate = run.rate(row, OURS)
    if rate is None:
        return NONE
    return f"{1 / rate:.1f} s" if row == "first" else f"{rate:.3g}"


def _factor(run: Run, row: str, way: str) -> str:
    ratio = run.factor(row, way)
    return NONE if ratio is None else spread(ratio)


def spread(ratio: Ratio) -> str:
    return f"{median(ratio.pairs):.3g} ({min(ratio.pairs):.3g} to {max(ratio.pairs):.3g})"


def _kilobytes(size: float | None) -> str:
    return NONE if size is None else f"{size / 1e3:.0f}"


def _disk(run: Run, way: str) -> str:
    theirs, ours = run.ways[way].bytes, run.ways[OURS].bytes
    return NONE if theirs is None or not ours else f"{theirs / ours:.2f}"
