"""The cost of building and reading the cache: `make bench-cache`.

Builds run as in the command, on Dask workers that are already up: headers, plan, decoding, writing, tables. CPU time is the sum of
all processes. Decoding only, the yardstick of a build, runs in the same workers.
"""

import contextlib
import io
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pydicom
from numcodecs import zstd
from pydicom.pixels import get_decoder

from benchmarks.rounds import Cost, Ratio, cost_of, cpu_ms, machine, options, print_and_keep, run_rounds, table
from benchmarks.sources import write_sources
from benchmarks.store import store_report
from cache_schema import Cache
from cache_schema.layout import CHUNK_SLICES, chunk_file, chunk_starts
from cache_schema.study import Box
from preprocess.build.build_cache import build_cache
from preprocess.build.dask_pool import local_cluster
from preprocess.decoders import PLUGINS, decoder_names
from preprocess.masks.names import find_segmentation
from preprocess.masks.segmentation import read_segmentation
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies
from preprocess.series.study_plan import StudyPlan

STUDIES, SLICES, ROUNDS = 4, 128, 5
COPIES = 5
"""of each phantom, so that two workers have enough to share"""
WINDOW, CROP = 96, (100, 110, 400, 410)
"""slices, and the 300 x 300 box that training usually reads"""
Rows = list[tuple[str, ...]]
Read = Callable[[int, int, Box | None], np.ndarray | None]
"""(first slice, one after the last, box) -> (slices, h, w) uint8; None where nothing is kept"""


class Workers:
    """Local Dask workers, already started, and the CPU time of all processes involved."""

    def __init__(self, count: int):
        from distributed import Client

        self._cluster = local_cluster(count)
        self.address = self._cluster.scheduler_address
        self.client = Client(self._cluster)

    def close(self) -> None:
        self.client.close()
        self._cluster.close()

    def cpu(self) -> float:
        return time.process_time() + sum(self.client.run(time.process_time).values())

    def build(self, source: Path, out: Path) -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        cpu, wall = self.cpu(), time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            result = build_cache(source, out, scheduler=self.address, tell=lambda line: None)
        wall = time.perf_counter() - wall
        if result.exit_status:
            raise SystemExit(f"the build of {source.name} ended with status {result.exit_status}")
        return Cost((self.cpu() - cpu) * 1e3, wall * 1e3)

    def build_with(self, plugin: str, source: Path, out: Path) -> Cost:
        """A build whose JPEG Lossless decoder is `plugin` alone."""
        usual = dict(PLUGINS)
        alone = {syntax: (plugin,) if "turbo" in names else names for syntax, names in usual.items()}
        self.client.run(_set_plugins, alone)
        try:
            return self.build(source, out)
        finally:
            self.client.run(_set_plugins, usual)

    def decode_only(self, files: list[Path]) -> Cost:
        """Decodes the files, shared by the workers."""
        names = list(self.client.scheduler_info()["workers"])
        wall = time.perf_counter()
        submit = partial(self.client.submit, _decode_only, pure=False)
        parts = [submit(files[n :: len(names)], workers=[name]) for n, name in enumerate(names)]
        return Cost(sum(self.client.gather(parts)), (time.perf_counter() - wall) * 1e3)


def _set_plugins(plugins: dict[str, tuple[str, ...]]) -> None:
    """On a worker: imports by itself, since a function of __main__ travels with copies of what it names."""
    from preprocess import decoders

    decoders.PLUGINS.update(plugins)
    decoders.decoder_names.cache_clear()


def _decode_only(files: list[Path]) -> float:
    """CPU milliseconds of dcmread and the plugin that a build uses."""
    cpu = time.process_time()
    for file in files:
        dataset = pydicom.dcmread(file)
        syntax = dataset.file_meta.TransferSyntaxUID
        plugin = decoder_names(syntax)[0] if syntax.is_encapsulated else ""
        get_decoder(syntax).as_array(dataset, raw=True, decoding_plugin=plugin)
    return (time.process_time() - cpu) * 1e3


def measure_builds(sources: dict[str, Path], folder: Path, rounds: int) -> tuple[list[Ratio], Rows]:
    files = {syntax: sorted(source.rglob("*.dcm")) for syntax, source in sources.items()}
    with contextlib.closing(Workers(1)) as one, contextlib.closing(Workers(2)) as two:
        methods: dict[str, Callable[[], Cost]] = {}
        for syntax, source in sources.items():
            methods |= {
                f"{syntax}, build": partial(one.build, source, folder / f"cache-{syntax}"),
                f"{syntax}, build, 2 workers": partial(two.build, source, folder / "cache-two"),
                f"{syntax}, decode only": partial(one.decode_only, files[syntax]),
                f"{syntax}, decode only, 2 workers": partial(two.decode_only, files[syntax]),
            }
        slow = folder / "cache-slow"
        methods["sv1, build with pylibjpeg"] = partial(one.build_with, "pylibjpeg", sources["sv1"], slow)
        costs = run_rounds(methods, rounds)
    cpu, wall = cpu_ms(costs), {name: [cost.wall_ms for cost in found] for name, found in costs.items()}
    title, aims = {"sv1": "JPEG Lossless", "explicit": "uncompressed"}, {"sv1": 0.7, "explicit": 0.5}
    ratios = []
    for syntax in sources:
        name = f"{title[syntax]}: slices per CPU-second, build over decode only"
        times = cpu[f"{syntax}, decode only"], cpu[f"{syntax}, build"]
        ratios.append(Ratio.of(name, *times, at_least=aims[syntax]))
    name = "JPEG Lossless: slices per CPU-second, build over build with pylibjpeg alone"
    ratios.append(Ratio.of(name, cpu["sv1, build with pylibjpeg"], cpu["sv1, build"], at_least=3))
    for syntax in sources:  # decoding only shows what a second core of this machine adds
        by_one, by_two = wall[f"{syntax}, build"], wall[f"{syntax}, build, 2 workers"]
        name = f"{title[syntax]}: slices per second, 2 workers over 1"
        build = Ratio.of(f"{name}, build", by_one, by_two, at_least=1.7)
        decode = Ratio.of(
            f"{name}, decode only", wall[f"{syntax}, decode only"], wall[f"{syntax}, decode only, 2 workers"]
        )
        both = Ratio.of(f"{name}, build over decode only", build.pairs, decode.pairs, at_least=0.97)
        ratios += [build, decode, both]
    rows: Rows = []
    for name in sorted(costs):
        count = len(files[name.split(",")[0]])
        each = median(cpu[name]) / count
        rows.append((name, f"{each:.2f}", f"{1e3 / each:.0f}", f"{count * 1e3 / median(wall[name]):.0f}"))
    return ratios, rows


class Readers:
    """The same study in several formats, and ways to read windows of it."""

    def __init__(self, sources: dict[str, Path], cache: Path, folder: Path):
        self.plans = {syntax: _longest(source) for syntax, source in sources.items()}
        self.study = Cache(cache).study(self.plans["sv1"].id)
        whole = self.study.read(0, self.study.record.slices)
        self.npy, self.png = folder / "study.npy", folder / "png"
        np.save(self.npy, whole)
        self.png.mkdir()
        for z, picture in enumerate(whole):
            cv2.imwrite(f"{self.png}/{z}.png", picture)
        self.packed = [
            (self.study.folder / chunk_file("pixels", first)).read_bytes()[:-4] for first in chunk_starts(0, len(whole))
        ]
        self.chunk = np.empty((CHUNK_SLICES, *whole.shape[1:]), np.uint8)
        self.whole = whole

    def forms(self) -> dict[str, Read]:
        return {
            "cache": self.study.read,
            "bare zstd decode": self._zstd,
            ".npy, memory-mapped": self._npy,
            "PNG a slice": self._png,
            "DICOM uncompressed, build's decoder": DicomPixels(self.plans["explicit"]).read,
            "DICOM JPEG Lossless, build's decoder": DicomPixels(self.plans["sv1"]).read,
            "DICOM JPEG Lossless, pylibjpeg": self._usual,
        }

    def check(self) -> None:
        """Exits unless all formats have the same pixels."""
        for name, read in self.forms().items():
            found = read(3, 6, CROP)
            if found is not None and not np.array_equal(found, self.whole[(slice(3, 6), *_inside(CROP))]):
                raise SystemExit(f"{name} reads other pixels")

    def _zstd(self, z0: int, z1: int, box: Box | None) -> None:
        for first in chunk_starts(z0, z1):
            zstd.decompress(self.packed[first // CHUNK_SLICES], self.chunk)

    def _npy(self, z0: int, z1: int, box: Box | None) -> np.ndarray:
        return np.load(self.npy, mmap_mode="r")[(slice(z0, z1), *_inside(box))].copy()

    def _png(self, z0: int, z1: int, box: Box | None) -> np.ndarray:
        slices = (np.asarray(cv2.imread(f"{self.png}/{z}.png", cv2.IMREAD_UNCHANGED)) for z in range(z0, z1))
        return np.stack([each[_inside(box)] for each in slices])

    def _usual(self, z0: int, z1: int, box: Box | None) -> np.ndarray:
        out = []
        for place in self.plans["sv1"].slices[z0:z1]:
            dataset = pydicom.dcmread(place.path)
            decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
            stored, _ = decoder.as_array(dataset, raw=True, decoding_plugin="pylibjpeg")
            hu = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            out.append(np.round((np.clip(hu, -500, 1300) + 500) * 255 / 1800).astype(np.uint8)[_inside(box)])
        return np.stack(out)


def _inside(box: Box | None) -> tuple[slice, slice]:
    """Rows and columns of a box; all of them without one."""
    x0, y0, x1, y1 = box or (0, 0, None, None)
    return slice(y0, y1), slice(x0, x1)


def _longest(source: Path) -> StudyPlan:
    return max(plan_studies(source)[0], key=lambda plan: (len(plan.slices), plan.id))


def measure_reads(readers: Readers, rounds: int) -> tuple[list[Ratio], Rows]:
    readers.check()
    slices, chance = readers.study.record.slices, random.Random(0)
    begin = (slices - WINDOW) // 2
    places = [chance.randrange(slices - 3) for _ in range(24)]
    kinds: dict[str, list[tuple[int, int, Box | None]]] = {
        "window": [(begin, begin + WINDOW, None)],
        "triplet": [(z, z + 3, None) for z in places],
        "crop": [(begin, begin + WINDOW, CROP)],
        "whole study": [(0, slices, None)],
    }

    def cost(read: Read, wanted: list[tuple[int, int, Box | None]]) -> Cost:
        return cost_of(lambda: [read(*one) for one in wanted], len(wanted))

    methods: dict[str, Callable[[], Cost]] = {}
    for form, read in readers.forms().items():
        methods |= {f"{kind}, {form}": partial(cost, read, wanted) for kind, wanted in kinds.items()}
    cpu = cpu_ms(run_rounds(methods, rounds))
    ratios = []
    for kind in kinds:
        aim = {"at_most": 1.8} if kind == "window" else {}
        ours, bare = cpu[f"{kind}, cache"], cpu[f"{kind}, bare zstd decode"]
        ratios.append(Ratio.of(f"{kind}: CPU time, cache over bare zstd decode", ours, bare, **aim))
    rows: Rows = [(form, *(f"{median(cpu[f'{kind}, {form}']):.2f}" for kind in kinds)) for form in readers.forms()]
    return ratios, rows


def measure_segmentation(source: Path, rounds: int) -> float:
    """CPU milliseconds per slice to find boxes and ratios in a NIfTI file."""
    found = ((plan, find_segmentation(source / "masks", plan.id)) for plan in plan_studies(source)[0])
    plan, mask = next((plan, mask) for plan, mask in found if mask)
    pixels = DicomPixels(plan)
    costs = run_rounds({"": lambda: cost_of(lambda: read_segmentation(mask, plan, pixels.read))}, rounds)[""]
    return median(cost.cpu_ms for cost in costs) / len(plan.slices)


def report(studies: int, slices: int, rounds: int) -> Iterator[str]:
    count = studies * (1 + COPIES)
    yield f"{machine()}\n{count} phantoms of {slices} slices and the GE head; medians and ranges of {rounds} paired rounds\n"
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as name:
        folder = Path(name)
        sources = write_sources(folder, studies, slices, COPIES)
        build_ratios, build_rows = measure_builds(sources, folder, rounds)
        read_ratios, read_rows = measure_reads(Readers(sources, folder / "cache-sv1", folder), rounds)
        segmentation = measure_segmentation(sources["explicit"], rounds)
        index = Cache(folder / "cache-sv1").index
        stored, plain = sum(index["bytes"]), sum(index.eval("slices * rows * columns"))
        stores = list(store_report(folder / "cache-sv1", folder, rounds))
    rows = [ratio.row() for ratio in (*build_ratios, *read_ratios)]
    yield table("ratios", Ratio.HEAD, rows)
    yield table("building", ("what", "CPU-ms a slice", "slices a CPU-second", "slices a second"), build_rows)
    yield table(
        f"reading, CPU-ms (window: {WINDOW} slices; crop: {WINDOW} of 300 x 300)",
        ("what", "window", "random triplet", "crop", "whole study"),
        read_rows,
    )
    yield f"a segmentation adds {segmentation:.2f} CPU-ms per slice; chunks take 1/{plain / stored:.2f} of their pixels' bytes\n"
    yield from stores


def main() -> None:
    given = options(__doc__, STUDIES, SLICES, ROUNDS, WINDOW).parse_args()
    cv2.setNumThreads(1)
    print_and_keep(report(given.studies, given.slices, given.rounds), "cache", given.keep)


if __name__ == "__main__":
    main()
