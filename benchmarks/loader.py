"""From the cache to the network's input, compared with alternatives: `make bench-loader`.

CPU time of one process, without reading processes. In a round every method makes the same items.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time, sleep

import cv2
import numpy as np
import torch

from benchmarks.items import BOX, TRIPLETS_A_ROUND, Cycle, augment_settings, triplet_schedule, warp_of, window_items
from benchmarks.others import Albumentations, cropped, decoded, from_png, with_opencv
from benchmarks.rounds import Cost, Ratio, cost_of, cpu_ms, machine, options, print_and_keep, run_rounds, table
from benchmarks.sources import write_sources
from cache_schema import Cache
from cache_schema.study import Box, square_around
from preprocess.build.build_cache import build_cache
from preprocess.series.planning import plan_studies
from trainer.data.augment import Augmentation
from trainer.data.image import make_image
from trainer.data.items import Item
from trainer.data.loader import Loader
from trainer.data.order import ScheduledItem, Training
from trainer.data.source import TRIPLET_CHUNKS_BYTES, Source, assemble, stretch
from trainer.settings.settings import DataSettings

STUDIES, SLICES, ROUNDS = 4, 128, 7


@dataclass
class Ways:
    """One kind of item, made by every method. Each method makes all items of a round; costs are per item."""

    files: dict[str, list[Path]]
    """DICOM files by study, head to feet"""
    png: Path
    source: Source
    schedule: Cycle | Training
    """that of the source"""
    entries: Callable[[], list[ScheduledItem]]
    """the items of the round"""
    batch: int
    warp_of: Callable[[Item], str]
    box: Box | None

    def __post_init__(self) -> None:
        self.albumentations = Albumentations(self.source.augmentation.augment)
        self.cache = self.source.reader.cache
        settings = DataSettings(size=self.source.augmentation.size)
        self._loader = iter(Loader(self.source, self.batch, settings, torch.device("cpu")))

    def ways(self) -> dict[str, Callable[[], Cost]]:
        return {
            "the reference's way": self._each(self._reference),
            "albumentations on this cache": self._each(self._albumentations),
            "PNG files and albumentations": self._each(self._png),
            "cv2 on this cache": self._each(self._plain),
            "this path": lambda: cost_of(self._next, self.batch),
        }

    def _next(self) -> None:
        """One batch, until DALI has prefetched the next: its threads must not work during another measurement."""
        next(self._loader)
        while True:
            spent = process_time()
            sleep(0.05)
            if process_time() - spent < 0.002:
                return

    def _each(self, way: Callable[[ScheduledItem], object]) -> Callable[[], Cost]:
        entries = self.entries
        return lambda: cost_of(lambda: [way(entry) for entry in entries()], self.batch)

    def _slices(self, item: Item) -> range:
        return range(item.start, item.start + item.frames)

    def _reference(self, entry: ScheduledItem) -> np.ndarray:
        item = entry.item
        slices = decoded([self.files[item.id][z] for z in self._slices(item)], self.box)
        return self.albumentations.reference(slices, self.warp_of(item), item.key)

    def _albumentations(self, entry: ScheduledItem) -> np.ndarray:
        item = entry.item
        slices = self.cache.read(item.id, item.start, item.start + item.frames)
        return self.albumentations(cropped(slices, self.box), self.warp_of(item))

    def _png(self, entry: ScheduledItem) -> np.ndarray:
        item = entry.item
        slices = from_png(self.png / item.id, item.start, item.start + item.frames)
        return self.albumentations(cropped(slices, self.box), self.warp_of(item))

    def _plain(self, entry: ScheduledItem) -> np.ndarray:
        return with_opencv(self.source.sample(entry))

    def split(self) -> dict[str, float]:
        """CPU milliseconds per item of each step of this path."""
        spent = dict.fromkeys(("read", "stretch", "params", "image"), 0.0)
        entries = self.entries()
        for entry in entries:
            item, clock = entry.item, _Clock(spent)
            params = self.source.augmentation(0, item)
            clock("params")
            study = self.cache.study(item.id)
            box = self.box and square_around(self.box, study.record.rows, study.record.columns)
            pixels = self.source.reader.read(item.id, item.start, item.start + item.frames, box)
            clock("read")
            pixels = stretch(pixels, pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2)), params.gain)
            clock("stretch")
            make_image(assemble(pixels, params), self.source.augmentation.size)
            clock("image")
        return {name: ms / len(entries) for name, ms in spent.items()}


class _Clock:
    def __init__(self, spent: dict[str, float]):
        self.spent, self.last = spent, process_time()

    def __call__(self, step: str) -> None:
        now = process_time()
        self.spent[step] += (now - self.last) * 1e3
        self.last = process_time()


def write_inputs(folder: Path, studies: int, slices: int) -> tuple[Path, dict[str, list[Path]]]:
    """(cache, DICOM files by study) of JPEG Lossless phantoms. Writes their pixels as PNG files, too, in `png`."""
    source = write_sources(folder, studies, slices)["sv1"]
    build_cache(source, folder / "cache", folds=2, tell=lambda line: None)
    files = {plan.id: [Path(entry.path) for entry in plan.slices] for plan in plan_studies(source)[0]}
    cache = Cache(folder / "cache")
    for id in cache.ids:
        (folder / "png" / id).mkdir(parents=True)
        for z, one in enumerate(cache.read(id, 0, cache.record(id).slices)):
            cv2.imwrite(f"{folder}/png/{id}/{z}.png", one)
    return cache.path, files


def window_ways(cache: Path, files: dict[str, list[Path]], png: Path) -> Ways:
    augmentation = Augmentation(512, 1, augment_settings("vertebrae"))
    cycle = Cycle(window_items(Cache(cache), augmentation))
    source = Source(cache, cycle, augmentation, dict.fromkeys(Cache(cache).ids, BOX))
    entries = [cycle[k] for k in range(4)]
    return Ways(files, png, source, cycle, lambda: entries, 4, lambda item: warp_of(augmentation, item), BOX)


def triplet_ways(cache: Path, files: dict[str, list[Path]], png: Path) -> Ways:
    augmentation = Augmentation(512, 1, augment_settings("bbox"))
    schedule = triplet_schedule(Cache(cache))
    source = Source(cache, schedule, augmentation, keep_bytes=TRIPLET_CHUNKS_BYTES)
    some = [schedule[k] for k in range(TRIPLETS_A_ROUND)]
    return Ways(files, png, source, schedule, lambda: some, TRIPLETS_A_ROUND, lambda item: "none", None)


def reading_a_triplet(ways: Ways) -> float:
    """CPU milliseconds of reading, without stretching, averaged over an epoch in one process with an empty cache."""
    schedule, source = ways.schedule, ways.source
    assert isinstance(schedule, Training)
    reader = Source(source.cache, schedule, source.augmentation, keep_bytes=TRIPLET_CHUNKS_BYTES).reader
    count = schedule.steps_per_epoch * schedule.batch
    entries = [schedule[k] for k in range(count)]
    began = process_time()
    for entry in entries:
        reader.read(entry.item.id, entry.item.start, entry.item.start + 3, None)
    return (process_time() - began) * 1e3 / count


def measure(name: str, ways: Ways, rounds: int, aims: dict[str, dict[str, float]]) -> tuple[list[Ratio], list[tuple]]:
    """Ratios of every method's cost over this path's, and CPU milliseconds per item."""
    costs = cpu_ms(run_rounds(ways.ways(), rounds))
    ours = costs.pop("this path")
    ratios = [
        Ratio.of(f"{name}: {way}, over this path", found, ours, **aims.get(way, {})) for way, found in costs.items()
    ]
    return ratios, [(way, f"{median(found):.1f}") for way, found in [*costs.items(), ("this path", ours)]]


def report(studies: int, slices: int, rounds: int) -> Iterator[str]:
    yield machine()
    yield f"{2 * studies} phantoms of {slices} slices, JPEG Lossless, 512 x 512; medians and ranges of {rounds} paired rounds\n"
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
        folder = Path(name)
        cache, files = write_inputs(folder, studies, slices)
        aims: dict[str, dict[str, float]] = {
            "the reference's way": {"at_least": 20},
            "albumentations on this cache": {"at_least": 2.5},
            "cv2 on this cache": {"at_least": 1 / 1.15},
        }
        both = {
            "window": window_ways(cache, files, folder / "png"),
            "triplet": triplet_ways(cache, files, folder / "png"),
        }
        ratios, rows, splits = [], [], []
        for name, ways in both.items():
            found, costs = measure(name, ways, rounds, aims if name == "window" else {})
            ratios += found
            rows += [(f"{name}: {way}", ms) for way, ms in costs]
            whole = float(costs[-1][1])
            steps = [ways.split() for _ in range(rounds)]
            split = {step: median(each[step] for each in steps) for step in steps[0]}
            splits.append((name, *(f"{ms:.2f}" for ms in split.values()), f"{whole - sum(split.values()):.2f}"))
        reading = [reading_a_triplet(both["triplet"]) for _ in range(rounds)]
    one = Ratio("random triplet: CPU-ms of reading, amortised over an epoch", reading, at_most=1)
    yield table("ratios", Ratio.HEAD, [ratio.row() for ratio in [*ratios, one]])
    yield table("CPU-ms an item (a window has 96 slices, a triplet 3)", ("what", "CPU-ms"), rows)
    yield table("this path's steps, CPU-ms an item", ("what", "read", "stretch", "params", "image", "rest"), splits)


def main() -> None:
    given = options(__doc__, STUDIES, SLICES, ROUNDS, 96).parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print_and_keep(report(given.studies, given.slices, given.rounds), "loader", given.keep)


if __name__ == "__main__":
    main()
