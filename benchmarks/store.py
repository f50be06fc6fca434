"""What reading a cache from a store costs, beside zarr-python on the same arrays: `make bench-cache`, or `python -m benchmarks.store`.

All servers are on loopback: moto's for S3, and one for plain http with byte ranges; both are written in Python, run in a process
of their own, and share the cores with the readers. What they take is in every row, so ratios say more than MB/s.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.rounds import Cost, Ratio, cost_of, machine, options, print_and_keep, run_rounds, table
from cache_schema import Cache, CacheWriter
from cache_schema.local_copy import LocalCopy
from cache_schema.store_path import StorePath, place_of
from cache_schema.stores import open_store
from preprocess import studies
from preprocess.phantom.generate import write_phantom

SERVERS = Path(__file__).resolve().parents[1] / "tests" / "servers"
STUDIES, SLICES, ROUNDS = 2, 128, 7
WINDOW, WINDOWS, BATCH, READERS = 96, 4, 4, 4
"""slices; windows of a measurement; windows of a batch; reading processes"""
BUDGET = 8 << 30
Read = Callable[[int, int], Any]

COLD = """
import sys, time
import pandas, numpy
imported = time.perf_counter()
import obstore, zarr
imported = time.perf_counter() - imported
from cache_schema import Cache
began = time.perf_counter()
cache = Cache(sys.argv[1])
for id in (cache.ids * 4)[:int(sys.argv[2])]:
    study = cache.study(id)
    first = (study.record.slices - int(sys.argv[3])) // 2
    study.read(first, first + int(sys.argv[3]))
print(time.perf_counter() - began, imported)
"""
"""run by a fresh process: seconds from opening the cache to the last window of a batch; and those that importing zarr and
obstore took before, which the first use of a store would do"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain http server for a folder."""
    with _started("file_server.py", str(folder)) as server:
        assert server.stdout
        yield server.stdout.readline().strip()


@contextmanager
def s3() -> Iterator[str]:
    """The address of an empty bucket; sets the environment that leads there."""
    with _started("s3_server.py") as server:
        assert server.stdout
        while (words := server.stdout.readline().split())[0:1] != ["export"] or "DISABLED" not in words[1]:
            if words[:1] == ["export"]:
                name, _, value = words[1].partition("=")
                os.environ[name] = value
        yield "s3://bucket/cache"


@contextmanager
def _started(script: str, *words: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, str(SERVERS / script), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            server.kill() if server.stdin is None else server.stdin.close()
            server.wait()


@cache
def _ours(address: str, copy: str | None) -> Read:
    found = Cache(address, None if copy is None else LocalCopy(Path(copy), BUDGET))
    return found.study(found.ids[0]).read


@cache
def _zarrs(address: str, id: str) -> Read:
    import zarr

    place = place_of(address)
    if isinstance(place, StorePath):
        opened: Any = open_store(place.root)  # zarr-python's own ObjectStore over the same obstore
        store = zarr.storage.ObjectStore(opened.store, read_only=True)
        array = zarr.open_array(store, path=(place / id / "pixels").key, mode="r")
    else:
        array = zarr.open_array(zarr.storage.LocalStore(place / id / "pixels"), mode="r")
    return lambda first, end: array[first:end]


def read_windows(address: str, id: str, how: str, copy: str | None = None) -> None:
    """how: ours, or zarr."""
    read = _ours(address, copy) if how == "ours" else _zarrs(address, id)
    for _ in range(WINDOWS):
        read(0, WINDOW)


class Readers:
    """Processes that read at once, already started."""

    def __init__(self, count: int):
        self.pools = [get_context("spawn").Pool(1) for _ in range(count)]

    def cost(self, readers: int, *what: Any) -> Cost:
        """Wall time of a window of each of so many readers at once. CPU time is not measured."""
        began = perf_counter()
        for answer in [pool.apply_async(read_windows, what) for pool in self.pools[:readers]]:
            answer.get()
        return Cost(0, (perf_counter() - began) * 1e3 / WINDOWS)

    def close(self) -> None:
        for pool in self.pools:
            pool.terminate()


def _cold(address: str) -> Cost:
    """Wall time to the first batch in a fresh process, its imports done; as CPU time, the wall time of importing zarr and obstore."""
    command = [sys.executable, "-c", COLD, address, str(BATCH), str(WINDOW)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    batch, imported = map(float, ran.stdout.split())
    return Cost(imported * 1e3, batch * 1e3)


def store_report(local: Path, folder: Path, rounds: int) -> Iterator[str]:
    """local: a cache. folder: for copies of it."""
    found = Cache(local)
    id = found.ids[0]
    with ExitStack() as stack:
        sharded = CacheWriter(folder / "sharded", 64)
        sharded.publish(found.study(id))
        sharded.finish()
        bucket = stack.enter_context(s3())
        writer = CacheWriter(bucket)
        for each in found.ids:
            writer.publish(found.study(each))
        writer.finish()
        site = stack.enter_context(served(local.parent))
        places = {
            "folder": str(local),
            "http": f"{site}/{local.name}",
            "http, shards of 64": f"{stack.enter_context(served(folder))}/sharded",
            "S3 (moto)": bucket,
        }
        readers = Readers(READERS)
        stack.callback(readers.close)
        _check(places, id)
        methods: dict[str, Callable[[], Cost]] = {}
        for place, address in places.items():
            for how in ("ours", "zarr"):
                for count in (1, READERS):
                    methods[f"{place}, {how}, {count}"] = partial(readers.cost, count, address, id, how)
        copy = str(folder / "copy")
        for count in (1, READERS):
            methods[f"http, local copy, {count}"] = partial(readers.cost, count, places["http"], id, "ours", copy)
        for how in ("ours", "zarr"):
            methods[f"CPU, folder, {how}"] = partial(cost_of, partial(read_windows, str(local), id, how), WINDOWS)
        methods |= {f"cold, {place}": partial(_cold, address) for place, address in places.items()}
        costs = run_rounds(methods, rounds)
    wall = {name: [cost.wall_ms for cost in found] for name, found in costs.items()}
    cpu = [[cost.cpu_ms for cost in costs[f"CPU, folder, {how}"]] for how in ("zarr", "ours")]
    ratios = [
        Ratio.of("folder: CPU time of a window, zarr-python over direct reading", *cpu),
        Ratio.of(
            "folder: wall time of a window, zarr-python over direct reading",
            wall["folder, zarr, 1"],
            wall["folder, ours, 1"],
        ),
        Ratio.of(
            "http: windows a second, with the local copy over without",
            wall["http, ours, 1"],
            wall["http, local copy, 1"],
        ),
        Ratio.of(
            "windows a second, http with the local copy over the folder",
            wall["folder, ours, 1"],
            wall["http, local copy, 1"],
        ),
    ]
    for place in list(places)[1:]:
        for count in (1, READERS):
            pair = wall[f"{place}, zarr, {count}"], wall[f"{place}, ours, {count}"]
            ratios.append(Ratio.of(f"{place}: MB/s over zarr-python's, readers: {count}", *pair))
    yield table("stores on loopback, ratios", Ratio.HEAD, [ratio.row() for ratio in ratios])
    size = WINDOW * found.record(id).rows * found.record(id).columns / 1e6
    rows = []
    for name in sorted(name for name in wall if not name.startswith(("cold", "CPU"))):
        place, how, count = name.rsplit(", ", 2)
        ms = median(wall[name]) / int(count)
        rows.append((place, how, count, f"{1e3 / ms:.1f}", f"{size * 1e3 / ms:.0f}"))
    head = ("store", "read by", "readers", "windows a second", "MB/s of pixels")
    yield table(f"stores on loopback, windows of {WINDOW} slices", head, rows)
    cold = []
    for place in places:
        imported, batch = (median(part) / 1e3 for part in zip(*costs[f"cold, {place}"], strict=True))
        cold.append((place, f"{batch:.2f}", f"{imported:.2f}"))
    head = ("store", "seconds (aim 0.5)", "importing zarr and obstore")
    yield table(f"the first batch ({BATCH} windows) in a fresh process", head, cold)


def _check(places: dict[str, str], id: str) -> None:
    """Exits unless all ways read the same pixels."""
    expected = _ours(places["folder"], None)(0, WINDOW)
    for place, address in places.items():
        for read in (_ours(address, None), _zarrs(address, id)):
            if not np.array_equal(read(0, WINDOW), expected):
                raise SystemExit(f"{place} reads other pixels")


def report(count: int, slices: int, rounds: int) -> Iterator[str]:
    yield f"{machine()}\n{count} phantoms of {slices} slices, 512 x 512; medians and ranges of {rounds} paired rounds\n"
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        folder = Path(name)
        write_phantom(folder / "rsna", count, slices, count, syntax="explicit", progress=False)
        (folder / "site").mkdir()
        writer = CacheWriter(folder / "site" / "cache")
        for study in studies(folder / "rsna"):
            writer.publish(study)
        writer.finish()
        shutil.rmtree(folder / "rsna")
        yield from store_report(folder / "site" / "cache", folder, rounds)


def main() -> None:
    given = options(__doc__, STUDIES, SLICES, ROUNDS, WINDOW).parse_args()
    print_and_keep(report(given.studies, given.slices, given.rounds), "store", given.keep)


if __name__ == "__main__":
    main()
