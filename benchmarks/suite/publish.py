"""Puts a run into the README, draws its figure and keeps it: `python -m benchmarks.suite.publish RUN.json`."""

import sys
from pathlib import Path

from benchmarks.rounds import kept_file
from benchmarks.suite.figure import draw
from benchmarks.suite.run import Run, load_run
from benchmarks.suite.table import markdown
from cache_schema.errors import UsageError
from trainer.process.command import serve

ROOT = Path(__file__).parents[2]
README, FIGURE = ROOT / "README.md", ROOT / "docs/images/bench.svg"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def filled(page: str, run: Run) -> str:
    """The page with the run's table between its two marks. Raises UsageError where these are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError("has no place for the table", where=README, expected=f"{BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown(run)}\n{END}{after}"


def publish(run: Run) -> list[Path]:
    """Writes the README's table, the figure and the kept run. Returns their paths."""
    page, kept = filled(README.read_text(), run), kept_file("bench", ".json")
    draw(run, FIGURE)
    run.write(kept)
    README.write_text(page)
    return [README, FIGURE, kept]


def main(words: list[str]) -> int:
    return serve(words, __doc__ or "", _publish, "interrupted: run the same command again")


def _publish(words: list[str]) -> None:
    if len(words) != 1:
        raise UsageError(f"{len(words)} words given", expected="RUN.json")
    print(*publish(load_run(Path(words[0]))), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
