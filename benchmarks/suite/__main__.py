"""From DICOM to the network's input and to an answer, beside what people use: `make bench`.

Writes all repeats as JSON to work/bench/, and prints the table. `make peers` sets up what other people use; a way that is not set up
is left out, and the table says so.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import exam
from benchmarks.peers.ways import WAYS
from benchmarks.suite.against import compared
from benchmarks.suite.measure import measured
from benchmarks.suite.run import OURS, load_run
from benchmarks.suite.table import text
from cache_schema.errors import CspineError

STUDIES, SLICES = 1, 200
KEPT = Path("work/bench")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, metavar="RUN.json", help="a kept run to compare with")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=f"of: {', '.join(WAYS)}"
    )
    parser.add_argument("--studies", type=int, default=STUDIES, help="phantoms, each of them under several names")
    parser.add_argument("--slices", type=int, default=SLICES, help="of each phantom, 96 or more")
    parser.add_argument("--no-exam", action="store_true", help="leave out the time from a folder to an answer")
    given = parser.parse_args(words)
    began, path = time.monotonic(), KEPT / f"{time.strftime('%Y-%m-%dT%H%M%S')}.json"
    try:
        against = given.against and load_run(given.against)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            names = [OURS, *(name for name in given.ways if name != OURS)]
            run = measured(names, Path(folder), given.studies, given.slices, tell=_tell)
        run.write(path)
        if not given.no_exam:
            run.exam = exam.measure(quick=True)
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(
            f"interrupted: {path} holds what was measured" if path.exists() else "interrupted: nothing is kept",
            file=sys.stderr,
        )
        return 130
    run.seconds = round(time.monotonic() - began)
    run.write(path)
    print(f"\n{text(run)}\n")
    if run.exam:
        print(exam.table_of(run.exam))
    print(f"All repeats, of {run.seconds / 60:.1f} minutes: {path}")
    if against:
        print(compared(run, against))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
