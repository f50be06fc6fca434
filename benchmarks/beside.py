"""The loader of another commit, compared with this one's: `python -m benchmarks.beside COMMIT`.

A process of each commit makes the same batches of the same cache, in turn, and reports the cost of an item. Both use the
packages of this environment.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.loader import SLICES, STUDIES, write_inputs
from benchmarks.rounds import Cost, Ratio, cpu_ms, machine, options, print_and_keep, run_rounds, table

HERE, ROUNDS = Path(__file__).parents[1], 15
CHILD = """
import sys
from pathlib import Path
import cv2, torch
from benchmarks import loader
cv2.setNumThreads(1)
torch.set_num_threads(1)
cache, png = map(Path, sys.argv[1:])
ways = {kind: getattr(loader, kind + "_ways")(cache, {}, png).ways()["this path"] for kind in ("window", "triplet")}
for kind in sys.stdin:
    costs = [ways[kind.strip()]() for _ in range(4)]
    print(*(sum(each) / len(costs) for each in zip(*costs)), flush=True)
"""
"""run by each commit: reads kinds of item, and prints CPU and wall milliseconds per item, the mean of four batches"""


def checkout(commit: str, folder: Path) -> str:
    """Unpacks a commit's files. Returns its short name. Exits with one line if there is no such commit."""
    found = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", f"{commit}^{{commit}}"], capture_output=True)
    if found.returncode:
        sys.exit(f"{commit}: is not a commit of {HERE}; expected one, as in: python -m benchmarks.beside HEAD~1")
    folder.mkdir()
    archive = subprocess.run(["git", "-C", HERE, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return found.stdout.decode().strip()


def asked(tree: Path, cache: Path, png: Path) -> Callable[[str], Cost]:
    """Starts a process that runs the code of `tree`. Returns kind of item -> its cost there."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", CHILD, str(cache), str(png)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert child.stdin and child.stdout
    questions, answers = child.stdin, child.stdout

    def cost(kind: str) -> Cost:
        questions.write(f"{kind}\n")
        questions.flush()
        answer = answers.readline().split()
        if len(answer) != 2:
            sys.exit(f"{tree}: benchmarks.loader of that commit does not know windows and triplets")
        return Cost(*map(float, answer))

    return cost


def report(commit: str, studies: int, slices: int, rounds: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bench-beside-") as temporary:
        folder = Path(temporary)
        name = checkout(commit, folder / "tree")
        yield machine()
        yield f"{2 * studies} phantoms of {slices} slices, 512 x 512; medians and ranges of {rounds} paired rounds\n"
        cache, _ = write_inputs(folder, studies, slices)
        trees = {"here": HERE, name: folder / "tree"}
        ask = {name: asked(tree, cache, folder / "png") for name, tree in trees.items()}
        ratios = []
        for kind in ("window", "triplet"):
            costs = cpu_ms(run_rounds({each: partial(ask[each], kind) for each in ask}, rounds))
            ours, theirs = (costs[each] for each in trees)
            ratios.append(Ratio.of(f"{kind}: CPU time here, over that at {name}", ours, theirs, at_most=1.03))
    yield table("ratios", Ratio.HEAD, [ratio.row() for ratio in ratios])


def main() -> None:
    parser = options(__doc__, STUDIES, SLICES, ROUNDS, 96)
    parser.add_argument("commit", help="a commit of this repository whose benchmarks.loader knows windows and triplets")
    given = parser.parse_args()
    print_and_keep(report(given.commit, given.studies, given.slices, given.rounds), "beside", given.keep)


if __name__ == "__main__":
    main()
