"""Another commit's way from the cache to the network's input, beside this one's: `python -m benchmarks.beside COMMIT`.

A process of each commit makes the same batches of the same cache, in turn, and says what an item cost it. Both use the
packages of this environment.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.loader import SLICES, STUDIES, write_inputs
from benchmarks.rounds import Cost, Ratio, machine, print_and_keep, run_rounds, table

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
"""by each commit: names a kind of item in; out come milliseconds of CPU and of the clock an item, the mean of four batches"""


def checkout(commit: str, folder: Path) -> str:
    """The files of a commit, unpacked; its short name. Exits with one line where there is no such commit."""
    found = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", f"{commit}^{{commit}}"], capture_output=True)
    if found.returncode:
        sys.exit(f"{commit}: is no commit of {HERE}; expected one, as in: python -m benchmarks.beside HEAD~1")
    folder.mkdir()
    archive = subprocess.run(["git", "-C", HERE, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return found.stdout.decode().strip()


def asked(tree: Path, cache: Path, png: Path) -> Callable[[str], Cost]:
    """A process that runs the code of `tree`: kind of item -> what one costs there. It ends with this one."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", CHILD, str(cache), str(png)]
    child = subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def cost(kind: str) -> Cost:
        child.stdin.write(f"{kind}\n")
        child.stdin.flush()
        answer = child.stdout.readline().split()
        if len(answer) != 2:
            sys.exit(f"{tree}: benchmarks.loader of that commit cannot be asked this way")
        return Cost(*map(float, answer))

    return cost


def report(commit: str, studies: int, slices: int, rounds: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bench-beside-") as folder:
        folder = Path(folder)
        name = checkout(commit, folder / "tree")
        yield machine()
        yield f"{2 * studies} phantoms of {slices} slices, 512 x 512; medians and ranges of {rounds} paired rounds\n"
        cache, _ = write_inputs(folder, studies, slices)
        trees = {"here": HERE, name: folder / "tree"}
        ask = {name: asked(tree, cache, folder / "png") for name, tree in trees.items()}
        ratios = []
        for kind in ("window", "triplet"):
            costs = run_rounds({each: lambda one=each, kind=kind: ask[one](kind) for each in ask}, rounds)
            ours, theirs = ([cost.cpu_ms for cost in costs[each]] for each in trees)
            ratios.append(Ratio.of(f"{kind}: CPU time here, over that at {name}", ours, theirs, at_most=1.03))
    yield table("ratios", ("what", "median", "range", "aim", "met"), [ratio.row() for ratio in ratios])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="a commit of this repository whose benchmarks.loader knows windows and triplets")
    parser.add_argument("--studies", type=int, default=STUDIES, help="phantoms, each of them twice")
    parser.add_argument("--slices", type=int, default=SLICES, help="of each phantom, 96 or more")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep", action="store_true", help="write the output to benchmarks/results too")
    given = parser.parse_args()
    print_and_keep(report(given.commit, given.studies, given.slices, given.rounds), "beside", given.keep)


if __name__ == "__main__":
    sys.exit(main())
