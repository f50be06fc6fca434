"""The process of a peer: `work/peers/NAME/bin/python -m benchmarks.peers.serve WAY FOLDER`, at the root of the repository.

A line of standard input is a request in JSON, a line of standard output its answer. `client` asks.
"""

import gc
import importlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "BLOSC_NTHREADS")
"""set before the peer is imported: its costs are those of one thread"""


class Server:
    """Answers requests by one way."""

    def __init__(self, way: Any):
        self.way = way

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        known: dict[str, Callable[..., dict]] = {
            "versions": self.versions,
            "prepare": self.prepare,
            "open": self.open,
            "window": self.window,
            "loader": self.loader,
            "first": self.first,
        }
        do = request.pop("do", None)
        if do not in known:
            raise ValueError(f"do={do!r} is not a request; expected one of {', '.join(known)}")
        return known[do](**request)

    def versions(self) -> dict[str, Any]:
        return {"versions": {"python": sys.version.split()[0], **self.way.versions()}}

    def prepare(self, files: dict[str, list[str]]) -> dict[str, Any]:
        folder = self.way.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        cost = cost_of(lambda: self.way.prepare(files))
        return {**cost, "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}

    def open(self, files: dict[str, list[str]], **look: Any) -> dict[str, Any]:
        from benchmarks.peers.image import Look

        self.way.open(files, Look.of(look))
        return {}

    def window(self, items: list[dict], keep: str | None = None) -> dict[str, Any]:
        import numpy as np

        made: list = []
        wanted = _items(items)
        cost = cost_of(lambda: made.extend(self.way.images(wanted)))
        if keep:
            np.save(keep, np.stack(made))
        return cost

    def loader(self, items: list[dict], workers: int, count: int) -> dict[str, Any]:
        batches = self.way.loader(_items(items), workers)
        next(batches)
        began = time.perf_counter()
        for _ in range(count):
            next(batches)
        return {"wall_ms": (time.perf_counter() - began) * 1e3}

    def first(self, items: list[dict], batch: int) -> dict[str, Any]:
        self.way.first(list(islice(cycle(_items(items)), batch)))
        return {}


def _items(fields: list[dict]) -> list:
    from benchmarks.peers.image import Item

    return [Item.of(each) for each in fields]


def cost_of(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of some work: CPU time of this process and of children that have ended, and wall time."""
    gc.collect()
    cpu, wall = _cpu(), time.perf_counter()
    work()
    return {"cpu_ms": (_cpu() - cpu) * 1e3, "wall_ms": (time.perf_counter() - wall) * 1e3}


def _cpu() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def line_of(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    from benchmarks.peers.ways import WAYS

    if len(sys.argv) != 3 or sys.argv[1] not in WAYS:
        sys.exit(f"expected WAY FOLDER, where WAY is one of {', '.join(WAYS)}")
    for name in THREADS:
        os.environ[name] = "1"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    chosen, folder = WAYS[sys.argv[1]], Path(sys.argv[2])
    server: Server | None = None
    for line in sys.stdin:
        try:
            if server is None:
                module = importlib.import_module(f"benchmarks.peers.{chosen.module}")
                server = Server(getattr(module, chosen.holds)(folder))
            answer = server.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is this request's answer
            answer = {"error": line_of(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
