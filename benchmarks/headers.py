"""Reading CT headers: this project's walk over the elements beside pydicom, with and without `specific_tags`."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom

from benchmarks.rounds import Cost, Ratio, cost_of, cpu_ms, machine, print_and_keep, run_rounds, table
from preprocess.headers.read import read_headers
from preprocess.headers.values import HEADER_TAGS
from preprocess.phantom.generate import write_phantom

SLICES = 100


def link_files(folder: Path, files: int) -> list[Path]:
    """As many names for the slices of one phantom."""
    write_phantom(folder / "rsna", 1, SLICES, 0, syntax="explicit", workers=1, progress=False)
    slices = sorted((folder / "rsna").rglob("*.dcm"))
    names = [folder / f"{number}.dcm" for number in range(files)]
    for number, name in enumerate(names):
        name.hardlink_to(slices[number % len(slices)])
    return names


def ways(files: list[Path]) -> dict[str, Callable[[], Cost]]:
    tags = sorted(HEADER_TAGS)

    def costing(read: Callable[[Path], object]) -> Callable[[], Cost]:
        return lambda: cost_of(lambda: [read(file) for file in files], len(files))

    return {
        "read_headers": costing(read_headers),
        "pydicom": costing(lambda file: pydicom.dcmread(file, stop_before_pixels=True)),
        "pydicom, specific_tags": costing(
            lambda file: pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
        ),
    }


def report(files: int, rounds: int) -> Iterator[str]:
    yield f"{machine()}\n{files} files of a phantom of {SLICES} slices; {rounds} paired rounds; read_headers checks values too\n"
    with tempfile.TemporaryDirectory(prefix="bench-headers-") as name:
        costs = cpu_ms(run_rounds(ways(link_files(Path(name), files)), rounds))
    own = costs.pop("read_headers")
    rows = [Ratio.of(f"CPU time of {way} over read_headers", other, own).row() for way, other in costs.items()]
    yield table("ratios", Ratio.HEAD, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    given = parser.parse_args()
    print_and_keep(report(given.files, given.rounds), "headers", given.keep)


if __name__ == "__main__":
    main()
