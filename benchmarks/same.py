"""Whether two work folders hold the same results: `python -m benchmarks.same A B`, the proof that a refactor changed nothing.

Each folder holds `cache` and `runs`, as `make demo` leaves them in work/demo. Compared are all files of the caches byte for byte,
but for cache/.build, which holds file times; and of the runs all model.safetensors tensor by tensor, all parquet tables value by
value, scores.json, calibration.json and CSV files byte for byte. Each difference is one line. Exit status: 0 the same,
1 something differs or is in one folder only, 2 a folder without cache or runs.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from safetensors.numpy import load_file

KINDS = ("files of the cache", "tensors", "tables", "scores and CSV files")


def kind_of(path: Path) -> str | None:
    """What a file, by its path in the work folder, is compared as; None where it is not compared."""
    if path.parts[0] == "cache":
        return None if path.parts[1] == ".build" else "files of the cache"
    if path.name == "model.safetensors":
        return "tensors"
    if path.suffix == ".parquet":
        return "tables"
    named = path.name in ("scores.json", "calibration.json")
    return "scores and CSV files" if named or path.suffix == ".csv" else None


def results(folder: Path) -> dict[Path, str]:
    """Relative path of each file that is compared -> its kind."""
    paths = (path.relative_to(folder) for part in ("cache", "runs") for path in (folder / part).rglob("*"))
    kinds = {path: kind_of(path) for path in paths if (folder / path).is_file()}
    return {path: kind for path, kind in kinds.items() if kind}


def compared(kind: str, a: Path, b: Path) -> Iterator[tuple[str, bool]]:
    """(name of a part, whether both files hold the same) for each part of a file; "" is the whole file."""
    if kind == "tensors":
        ours, theirs = load_file(a), load_file(b)
        for name in sorted(ours.keys() | theirs.keys()):
            found = [tensors[name] for tensors in (ours, theirs) if name in tensors]
            distinct = {(x.dtype.str, x.shape, x.tobytes()) for x in found}
            yield name, len(found) == 2 and len(distinct) == 1
    elif kind == "tables":
        yield "", pd.read_parquet(a).equals(pd.read_parquet(b))
    else:
        yield "", a.read_bytes() == b.read_bytes()


def compare(a: Path, b: Path) -> int:
    """Prints what differs between two work folders and what was compared. Returns the exit status, 0 or 1."""
    ours, theirs = results(a), results(b)
    counts, differences = dict.fromkeys(KINDS, 0), 0
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in ours or path not in theirs:
            print(f"only in {a if path in ours else b}: {path}")
            differences += 1
            continue
        for part, same in compared(ours[path], a / path, b / path):
            counts[ours[path]] += 1
            if not same:
                print(f"differs: {path}{f', {part}' if part else ''}")
                differences += 1
    print(f"compared {', '.join(f'{count} {kind}' for kind, count in counts.items())}; {differences} differences")
    return 1 if differences else 0


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs=2, metavar=("A", "B"), help="work folders, each with cache and runs"
    )
    a, b = folders = parser.parse_args(words).folders
    for folder in folders:
        if not ((folder / "cache").is_dir() and (folder / "runs").is_dir()):
            print(f"error: {folder}: holds no cache and runs; expected a folder as make demo leaves", file=sys.stderr)
            return 2
    return compare(a, b)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
