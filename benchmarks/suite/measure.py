"""Measures every way in rounds. A row is measured of all ways in turn, in random order, before the next row begins."""

import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.client import Peer, PeerFailed
from benchmarks.peers.requests import look_fields
from benchmarks.peers.ways import WAYS
from benchmarks.rounds import Cost, cores, cpu_name
from benchmarks.suite.inputs import Inputs, images, write_inputs
from benchmarks.suite.items import SIZE, TRIPLETS, Items
from benchmarks.suite.run import BYTES, ROWS, Run, Way
from cache_schema.errors import UsageError
from trainer.data.image import STD

ROUNDS = {"prepare": 2, "window": 4, "triplet": 3, "window_2": 2, "triplet_2": 2, "first": 3}
WARM_UP = {"window": 1}
"""rounds that do not count; the other rows begin with what is new each time: files, readers, or processes"""
WORKERS, FIRST_BATCH = 2, 2
COUNTS = {"window": 12, "triplet": TRIPLETS}
"""items that the loader with 2 workers gives while it is timed"""


class Contestants:
    """The processes of all ways, and what they found so far. A way that fails loses what it failed at, and its reason is kept."""

    def __init__(self, names: Sequence[str], folder: Path, inputs: Inputs, tell: Callable[[str], None]):
        self.inputs, self.tell = inputs, tell
        self.ways = {name: Way(note=WAYS[name].note, missing=lacking(name)) for name in names}
        self.load: list[float] = []
        self._folders = {name: folder / f"way-{number}" for number, name in enumerate(names)}
        self._peers: dict[str, Peer] = {}

    @contextmanager
    def started(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, folder in self._folders.items():
                folder.mkdir()

                def start(name: str = name, folder: Path = folder) -> None:
                    self._peers[name] = stack.enter_context(closing(Peer(name, folder)))
                    self.ways[name].versions = self._ask(name, {"do": "versions"})["versions"]

                self._tried(name, ROWS, start)
            yield

    def measure(self) -> None:
        """All rows."""
        self._row("prepare", self._prepare)
        for name in list(self._peers):
            self._tried(name, ROWS, partial(self._open, name))
        for row, items in (("window", self.inputs.windows), ("triplet", self.inputs.triplets)):
            self._row(row, partial(self._items, items))
            self._row(f"{row}_2", partial(self._loader, items, COUNTS[row]))
        self._row("first", self._first)

    def _row(self, row: str, cost: Callable[[str], Cost]) -> None:
        began, chance = time.monotonic(), random.Random(row)
        for number in range(-WARM_UP.get(row, 0), ROUNDS[row]):
            names = [name for name in self._peers if row not in self.ways[name].missing]
            for name in chance.sample(names, len(names)):
                self._tried(name, [row], partial(self._round, row, name, cost, number >= 0))
        self.load.append(round(os.getloadavg()[0], 1))
        measured = [way for way in self.ways.values() if row in way.costs]
        self.tell(f"{ROWS[row].title}: {len(measured)} ways, {time.monotonic() - began:.0f} s")

    def _round(self, row: str, name: str, cost: Callable[[str], Cost], counts: bool) -> None:
        found = cost(name)
        if counts:
            self.ways[name].costs.setdefault(row, []).append(found)

    def _tried(self, name: str, rows: Iterable[str], work: Callable[[], object]) -> None:
        try:
            work()
        except (PeerFailed, UsageError) as error:
            self.tell(f"{name}: {error}")
            self.ways[name].missing |= dict.fromkeys(rows, str(error))
            for row in rows:
                self.ways[name].costs.pop(row, None)  # rounds are paired
            if set(rows) >= set(ROWS):
                self._peers.pop(name, None)

    def _ask(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        return self._peers[name].ask(request)

    def _prepare(self, name: str) -> Cost:
        found, slices = self._ask(name, {"do": "prepare", "files": self.inputs.files}), self.inputs.slices
        if BYTES not in self.ways[name].missing:
            self.ways[name].bytes = found["bytes"] / slices
        return Cost(found["cpu_ms"] / slices, found["wall_ms"] / slices)

    @cached_property
    def _right(self) -> np.ndarray:
        return images(self.inputs.windows)

    def _open(self, name: str) -> None:
        """Opens what was prepared, and compares its windows with cspine's, made by OpenCV."""
        self._ask(name, self._opening())
        if "difference" in WAYS[name].lacks:
            return
        kept = self._folders[name].with_suffix(".npy")
        self._ask(name, {"do": "window", "items": self.inputs.windows.described(), "keep": str(kept)})
        self.ways[name].difference = difference(np.load(kept), self._right)
        kept.unlink()

    def _items(self, items: Items, name: str) -> Cost:
        found = self._ask(name, {"do": "window", "items": items.described()})
        return Cost(found["cpu_ms"] / len(items.entries), found["wall_ms"] / len(items.entries))

    def _loader(self, items: Items, count: int, name: str) -> Cost:
        request = {"do": "loader", "items": items.described(), "workers": WORKERS, "count": count}
        found = self._ask(name, request)
        return Cost(0, found["wall_ms"] / count)

    def _first(self, name: str) -> Cost:
        items = self.inputs.windows.described()
        return Cost(0, Peer.first(name, self._folders[name], self._opening(), items, FIRST_BATCH))

    def _opening(self) -> dict[str, Any]:
        return {"do": "open", "files": self.inputs.files, **look_fields(SIZE)}


def lacking(name: str) -> dict[str, str]:
    """row -> why the way has none."""
    asked = {row: "loader" if row.endswith("_2") else row for row in (*ROWS, BYTES)}
    return {row: WAYS[name].lacks[what] for row, what in asked.items() if what in WAYS[name].lacks}


def difference(found: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """(mean, largest) absolute difference of images, in steps of 8-bit pixels. Raises PeerFailed where the shapes differ."""
    if found.shape != right.shape:
        raise PeerFailed(f"its windows have the shape {found.shape}; expected {right.shape}")
    steps = np.abs(found.astype(np.float32) - right.astype(np.float32)) * STD[:, None, None]
    return float(steps.mean()), float(steps.max())


def measured(names: Sequence[str], folder: Path, studies: int, slices: int, tell: Callable[[str], None]) -> Run:
    """A run over these ways."""
    of = commit()
    inputs = write_inputs(folder, studies, slices)
    tell(f"{len(inputs.files)} studies, {inputs.slices} slices")
    found = Contestants(names, folder, inputs, tell)
    with found.started():
        found.measure()
    return Run(
        date=time.strftime("%Y-%m-%d"),
        commit=of,
        machine={
            "cpu": cpu_name(),
            "cores": f"{cores()} cores",
            "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
            "python": f"Python {platform.python_version()}",
        },
        settings={
            "studies": len(inputs.files),
            "slices": inputs.slices,
            "dicom_bytes_a_slice": round(inputs.dicom_bytes / inputs.slices),
            "rounds": ROUNDS,
            "workers": WORKERS,
            "first_batch": FIRST_BATCH,
        },
        load=found.load,
        ways={WAYS[name].name: way for name, way in found.ways.items()},
    )


def commit() -> str:
    """The short name of the checkout's commit, with "+" if files differ from it; "unknown" without git."""
    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
