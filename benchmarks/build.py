"""Where the CPU time of a build goes, step by step: `python -m benchmarks.build`.

One process, without Dask. Each round publishes the studies once and does each step by itself once, with the build's own functions.
The rest is header work, guards, findings, files and their names.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks.rounds import Cost, cost_of, cpu_ms, machine, options, print_and_keep, run_rounds, table
from benchmarks.sources import write_sources
from cache_schema import CacheWriter
from cache_schema.arrays import pack
from cache_schema.study import blocks
from preprocess.pixels.grey_tables import tables_of
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies
from preprocess.series.study_plan import StudyPlan
from preprocess.study_source import open_study

STUDIES, SLICES, ROUNDS = 2, 128, 5


def ways(source: Path, out: Path) -> dict[str, Callable[[], Cost]]:
    """Each step over all slices of the source; costs are per slice."""
    plans = plan_studies(source)[0]
    count = sum(len(plan.slices) for plan in plans)
    chunks = [chunk for plan in plans for chunk in blocks(open_study(plan, None)[0])]

    def per_slice(work: Callable[[], object]) -> Callable[[], Cost]:
        return lambda: cost_of(work, count)

    return {
        "whole": per_slice(lambda: _publish(plans, out)),
        "plan": per_slice(lambda: plan_studies(source)),
        "read and decode": per_slice(lambda: _decode(plans)),
        "grey values": per_slice(lambda: _look_up(plans[0], count)),
        "zstd": per_slice(lambda: [pack(chunk) for chunk in chunks]),
        "sha256 of the pixels": per_slice(lambda: [hashlib.sha256(chunk) for chunk in chunks]),
    }


def _publish(plans: list[StudyPlan], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    writer = CacheWriter(out)
    for plan in plans:
        writer.publish(open_study(plan, None)[0])


def _decode(plans: list[StudyPlan]) -> None:
    for plan in plans:
        pixels = DicomPixels(plan)
        for place in plan.slices:
            pixels.stored(place.header)


def _look_up(plan: StudyPlan, times: int) -> None:
    """One slice's stored values through its table, so many times."""
    header = plan.slices[len(plan.slices) // 2].header
    stored, grey = DicomPixels(plan).stored(header).copy(), tables_of(header).grey
    image = np.empty(stored.shape, np.uint8)
    for _ in range(times):
        cv2.LUT(stored, grey[None], image)


def report(studies: int, slices: int, rounds: int) -> Iterator[str]:
    yield f"{machine()}\n{2 * studies} phantoms of {slices} slices and the GE head; medians of {rounds} rounds\n"
    rows, names = [], {"explicit": "uncompressed", "sv1": "JPEG Lossless"}
    with tempfile.TemporaryDirectory(prefix="bench-build-") as folder:
        for syntax, source in write_sources(Path(folder), studies, slices).items():
            found = cpu_ms(run_rounds(ways(source, Path(folder, "cache")), rounds))
            costs = {name: median(each) for name, each in found.items()}
            whole, plan = costs.pop("whole"), costs["plan"]
            rest = whole + plan - sum(costs.values())
            parts = {**costs, "rest": rest, "all": whole + plan}
            rows += [
                (names[syntax], name, f"{ms:.2f}", f"{ms / (whole + plan):.0%}", f"{costs['read and decode'] / ms:.2f}")
                for name, ms in parts.items()
            ]
    head = ("source", "step", "CPU-ms a slice", "of all", "reading and decoding over it")
    yield table("a build in one process", head, rows)


def main() -> None:
    given = options(__doc__, STUDIES, SLICES, ROUNDS, 96).parse_args()
    cv2.setNumThreads(1)
    print_and_keep(report(given.studies, given.slices, given.rounds), "build", given.keep)


if __name__ == "__main__":
    main()
