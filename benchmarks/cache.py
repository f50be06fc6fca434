"""What the cache costs to build and to read: `make bench-cache`.

Builds run as the command runs them, on Dask workers that are already up: headers, plan, decoding, writing, tables.
CPU time is that of all processes together. Decoding alone, the measure of a build, runs in the same workers.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pydicom
from numcodecs import zstd
from pydicom.pixels import get_decoder

from benchmarks.rounds import Cost, Ratio, cost_of, machine, print_and_keep, run_rounds, table
from benchmarks.sources import write_sources
from cache_schema import Cache
from cache_schema.layout import CHUNK_SLICES, chunk_file, chunk_starts
from preprocess.build.build_cache import build_cache
from preprocess.build.cluster import local_cluster
from preprocess.headers.transfer_syntaxes import PLUGINS, decoder_names
from preprocess.masks.segmentation import find_segmentation, read_segmentation
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies
from preprocess.series.study_plan import StudyPlan

STUDIES, SLICES, ROUNDS = 4, 128, 5
WINDOW, CROP = 96, (100, 110, 400, 410)
"""slices, and the 300 x 300 box that training usually reads"""


class Workers:
    """Local Dask workers, warm, and the CPU time of all processes that take part."""

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
        self.client.run(
            _set_plugins, {syntax: (plugin,) if "turbo" in names else names for syntax, names in usual.items()}
        )
        try:
            return self.build(source, out)
        finally:
            self.client.run(_set_plugins, usual)

    def decode_only(self, files: list[Path]) -> Cost:
        """The files dealt out among the workers, study after study."""
        names = list(self.client.scheduler_info()["workers"])
        wall = time.perf_counter()
        parts = [
            self.client.submit(_decode_only, files[n :: len(names)], pure=False, workers=[name])
            for n, name in enumerate(names)
        ]
        return Cost(sum(self.client.gather(parts)), (time.perf_counter() - wall) * 1e3)


def _set_plugins(plugins: dict[str, tuple[str, ...]]) -> None:
    PLUGINS.update(plugins)
    decoder_names.cache_clear()


def _decode_only(files: list[Path]) -> float:
    """CPU milliseconds of dcmread and the plugin that a build takes."""
    cpu = time.process_time()
    for file in files:
        dataset = pydicom.dcmread(file)
        syntax = dataset.file_meta.TransferSyntaxUID
        plugin = decoder_names(syntax)[0] if syntax.is_encapsulated else ""
        get_decoder(syntax).as_array(dataset, raw=True, decoding_plugin=plugin)
    return (time.process_time() - cpu) * 1e3


def measure_builds(sources: dict[str, Path], folder: Path, rounds: int) -> tuple[list[Ratio], list[tuple[str, ...]]]:
    files = {syntax: sorted(source.rglob("*.dcm")) for syntax, source in sources.items()}
    one, two = Workers(1), Workers(2)
    methods: dict[str, Callable[[], Cost]] = {}
    for syntax, source in sources.items():
        out = folder / f"cache-{syntax}"
        methods |= {
            f"{syntax}, build": lambda source=source, out=out: one.build(source, out),
            f"{syntax}, build, 2 workers": lambda source=source: two.build(source, folder / "cache-two"),
            f"{syntax}, decode only": lambda syntax=syntax: one.decode_only(files[syntax]),
            f"{syntax}, decode only, 2 workers": lambda syntax=syntax: two.decode_only(files[syntax]),
        }
    methods["sv1, build with pylibjpeg"] = lambda: one.build_with("pylibjpeg", sources["sv1"], folder / "cache-slow")
    try:
        costs = run_rounds(methods, rounds)
    finally:
        one.close()
        two.close()
    cpu = {name: [cost.cpu_ms for cost in found] for name, found in costs.items()}
    wall = {name: [cost.wall_ms for cost in found] for name, found in costs.items()}
    title = {"sv1": "JPEG Lossless", "explicit": "uncompressed"}
    aims = {"sv1": 0.6, "explicit": 0.35}
    ratios = [
        Ratio.of(
            f"{title[syntax]}: slices per CPU-second, build over decode only",
            cpu[f"{syntax}, decode only"],
            cpu[f"{syntax}, build"],
            at_least=aims[syntax],
        )
        for syntax in sources
    ]
    ratios.append(
        Ratio.of(
            "JPEG Lossless: slices per CPU-second, build over build with pylibjpeg alone",
            cpu["sv1, build with pylibjpeg"],
            cpu["sv1, build"],
            at_least=3,
        )
    )
    for syntax in sources:  # decoding alone shows what a second core of this machine is worth
        for work, aim in (("build", {"at_least": 1.7}), ("decode only", {})):
            ratios.append(
                Ratio.of(
                    f"{title[syntax]}: slices per second, 2 workers over 1, {work}",
                    wall[f"{syntax}, {work}"],
                    wall[f"{syntax}, {work}, 2 workers"],
                    **aim,
                )
            )
    rows = []
    for name in sorted(costs):
        count = len(files[name.split(",")[0]])
        each = median(cpu[name]) / count
        rows.append((name, f"{each:.2f}", f"{1e3 / each:.0f}", f"{count * 1e3 / median(wall[name]):.0f}"))
    return ratios, rows


class Readers:
    """The same study in every form it could be kept in, and what it costs to read windows of it."""

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

    def forms(self) -> dict[str, Callable[[int, int, tuple | None], object]]:
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
        """What is compared must be the same pixels."""
        for name, read in self.forms().items():
            found = read(3, 6, CROP)
            if found is not None and not np.array_equal(found, self.whole[3:6, CROP[1] : CROP[3], CROP[0] : CROP[2]]):
                raise SystemExit(f"{name} reads other pixels")

    def _zstd(self, z0: int, z1: int, box: tuple | None) -> None:
        for first in chunk_starts(z0, z1):
            zstd.decompress(self.packed[first // CHUNK_SLICES], self.chunk)

    def _npy(self, z0: int, z1: int, box: tuple | None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, None, None)
        return np.load(self.npy, mmap_mode="r")[z0:z1, y0:y1, x0:x1].copy()

    def _png(self, z0: int, z1: int, box: tuple | None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, None, None)
        return np.stack([cv2.imread(f"{self.png}/{z}.png", cv2.IMREAD_UNCHANGED)[y0:y1, x0:x1] for z in range(z0, z1)])

    def _usual(self, z0: int, z1: int, box: tuple | None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, None, None)
        out = []
        for place in self.plans["sv1"].slices[z0:z1]:
            dataset = pydicom.dcmread(place.path)
            stored, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(
                dataset, raw=True, decoding_plugin="pylibjpeg"
            )
            hu = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            out.append(np.round((np.clip(hu, -500, 1300) + 500) * 255 / 1800).astype(np.uint8)[y0:y1, x0:x1])
        return np.stack(out)


def _longest(source: Path) -> StudyPlan:
    return max(plan_studies(source)[0], key=lambda plan: (len(plan.slices), plan.id))


def measure_reads(readers: Readers, rounds: int) -> tuple[list[Ratio], list[tuple[str, ...]]]:
    readers.check()
    slices, chance = readers.study.record.slices, random.Random(0)
    begin = (slices - WINDOW) // 2
    places = [chance.randrange(slices - 3) for _ in range(24)]
    kinds = {
        "window": [(begin, begin + WINDOW, None)],
        "triplet": [(z, z + 3, None) for z in places],
        "crop": [(begin, begin + WINDOW, CROP)],
        "whole study": [(0, slices, None)],
    }
    methods = {}
    for form, read in readers.forms().items():
        for kind, wanted in kinds.items():
            methods[f"{kind}, {form}"] = lambda read=read, wanted=wanted: cost_of(
                lambda: [read(*one) for one in wanted], len(wanted)
            )
    cpu = {name: [cost.cpu_ms for cost in found] for name, found in run_rounds(methods, rounds).items()}
    ratios = []
    for kind in kinds:
        aim = {"at_most": 1.8} if kind == "window" else {}
        ratios.append(
            Ratio.of(
                f"{kind}: CPU time, cache over bare zstd decode",
                cpu[f"{kind}, cache"],
                cpu[f"{kind}, bare zstd decode"],
                **aim,
            )
        )
    rows = [(form, *(f"{median(cpu[f'{kind}, {form}']):.2f}" for kind in kinds)) for form in readers.forms()]
    return ratios, rows


def measure_segmentation(source: Path, rounds: int) -> float:
    """CPU milliseconds a slice of finding boxes and ratios in a NIfTI file."""
    plan = next(plan for plan in plan_studies(source)[0] if find_segmentation(source / "masks", plan.id))
    mask, pixels = find_segmentation(source / "masks", plan.id), DicomPixels(plan)
    costs = run_rounds({"": lambda: cost_of(lambda: read_segmentation(mask, plan, pixels.read))}, rounds)[""]
    return median(cost.cpu_ms for cost in costs) / len(plan.slices)


def report(studies: int, slices: int, rounds: int) -> Iterator[str]:
    yield f"{machine()}\n{2 * studies} phantoms of {slices} slices and the GE head; medians and ranges of {rounds} paired rounds\n"
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        folder = Path(folder)
        sources = write_sources(folder, studies, slices)
        build_ratios, build_rows = measure_builds(sources, folder, rounds)
        read_ratios, read_rows = measure_reads(Readers(sources, folder / "cache-sv1", folder), rounds)
        segmentation = measure_segmentation(sources["explicit"], rounds)
        stored = sum(Cache(folder / "cache-sv1").index["bytes"])
        plain = sum(Cache(folder / "cache-sv1").index.eval("slices * rows * columns"))
    rows = [ratio.row() for ratio in (*build_ratios, *read_ratios)]
    yield table("ratios", ("what", "median", "range", "aim", "met"), rows)
    yield table("building", ("what", "CPU-ms a slice", "slices a CPU-second", "slices a second"), build_rows)
    yield table(
        f"reading, CPU-ms (window: {WINDOW} slices; crop: {WINDOW} of 300 x 300)",
        ("what", "window", "random triplet", "crop", "whole study"),
        read_rows,
    )
    yield f"a segmentation costs {segmentation:.2f} CPU-ms a slice more; chunks hold 1/{plain / stored:.2f} of their pixels' bytes\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES, help="phantoms, each built under two names")
    parser.add_argument("--slices", type=int, default=SLICES, help=f"of each phantom, {WINDOW} or more")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep", action="store_true", help="write the output to benchmarks/results too")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    print_and_keep(report(given.studies, given.slices, given.rounds), "cache", given.keep)


if __name__ == "__main__":
    sys.exit(main())
