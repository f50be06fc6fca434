"""Seconds from a folder of DICOM files to the answer, on this machine's device: `python -m benchmarks.exam [quick=true] [full=true]`.

cold    a fresh `trainer predict`, with imports and the loading of models, until its first answer is kept
warm    with the models loaded; by step, as `timing=true` has them: decode, boxes, slices, study, report (the exam card). The rest
        is reading headers and starting the process that decodes
stream  studies of all sizes in one command: the next is decoded while the networks work on this one

Phantoms of 512 x 512 pixels in JPEG Lossless, as the competition's; their files were just written, so none waits for a disk. One
model of each stage. On a CPU the demo's networks, hardly trained. On a GPU, or with full=true, those of configs, untrained, which
a CPU takes very long for. quick=true: fewer repeats.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.predictions import packed_models, seconds_to_an_answer, untrained
from benchmarks.rounds import cores, cpu_name, machine, print_and_keep, table
from benchmarks.sources import copy_study
from cache_schema.errors import CspineError
from cache_schema.machine import this_machine
from trainer.answers.answer import Answer
from trainer.predictor.job import ANSWERS, Job
from trainer.predictor.pace import Pace, Timer
from trainer.predictor.predictor import Predictor
from trainer.predictor.results import PARTS
from trainer.predictor.scans import Scans
from trainer.process.command import one_of
from trainer.session import on_gpu
from trainer.settings.keyvalue import assignments, require_known
from trainer.settings.stage_registry import CONFIGS

SIZES = (100, 352, 600)
"""slices: a short study, the competition's mean, and a long one"""
ORDER = (100, 352, 100, 600, 100, 352)
"""of the stream"""
COLD, WARM, STREAM = "cold", "warm", "stream"
DEMO = {"config": CONFIGS / "demo.yaml", "train.epochs": 1, "train.batch": 2, "train.micro_batch": 2}
FULL = {"model.pretrained": False, "fold": "all"}


class Repeats(NamedTuple):
    """How often each size is measured. A round has one cold start of each size, and one stream."""

    rounds: int
    warm: int
    """in each round"""


THOROUGH, QUICK = Repeats(rounds=3, warm=5), Repeats(rounds=1, warm=2)


class Measured(NamedTuple):
    """One answer."""

    seconds: float
    """since the answer before, or the start"""
    answer: Answer


@dataclass(frozen=True)
class Room:
    """Where the studies lie, and the models: packed, and loaded."""

    folder: Path
    pack: Path
    predictor: Predictor

    def cold(self, slices: int) -> float:
        """Seconds of a fresh process."""
        source, out = images(self.folder, slices), self.folder / "cold"
        command = [sys.executable, "-m", "trainer.predict", f"source={source}", f"models={self.pack}", f"out={out}"]
        return seconds_to_an_answer(command, out)

    def answers(self, name: object) -> list[Measured]:
        """Answers for all studies of a source in their order, kept as a command keeps them."""
        job = Job(self.predictor.models, self.folder / "warm", {}, cards=True)
        (job.out / ANSWERS).mkdir(parents=True, exist_ok=True)
        found, last = [], time.monotonic()
        with Scans(images(self.folder, name)) as scans:
            timer = Timer(Pace(), scans.decoding_processes(this_machine()))
            for answer in job.answers(self.predictor, scans, timer):
                now = time.monotonic()
                found.append(Measured(now - last, answer))
                last = now
        return found


def measure(
    *,
    full: bool | None = None,
    quick: bool = False,
    sizes: Sequence[int] = SIZES,
    order: Sequence[int] = ORDER,
    repeats: Repeats | None = None,
) -> dict[str, Any]:
    """All measurements, in seconds, as plain values of JSON. Every repeat is there.

    device; networks: "demo" or "full"; models: their names; sizes: slices -> cold_s, warm_s, steps (of the same warm answers) and
    in_box, the slices in the box that was found; stream: order (slices), between_s (from one answer to the next, round by round).

    full: networks of full size; by default on a GPU. sizes: slices of the studies. order: of the stream, of these sizes.
    repeats: by default those of `quick`.
    """
    full, repeats = on_gpu() if full is None else full, repeats or (QUICK if quick else THOROUGH)
    with tempfile.TemporaryDirectory(prefix="bench-exam-") as name:
        folder = Path(name)
        write_scans(folder, sizes, order)
        made = folder / "made"
        pack = packed_models(made, FULL, untrained) if full else packed_models(made, DEMO)
        room = Room(folder, pack, Predictor(pack))
        device = room.predictor.computing.device
        return {
            "device": f"{cpu_name()}, {cores()} cores" if device.capability is None else device.name,
            "networks": "full" if full else "demo",
            "models": [model.name for model in room.predictor.models.every],
            **in_rounds(room, sizes, order, repeats),
        }


def write_scans(folder: Path, sizes: Sequence[int], order: Sequence[int]) -> None:
    """A study of each size in a source of its own, and copies of them in the source of the stream."""
    options = ["--studies", "1", "--segmented", "0", "--syntax", "sv1", "--slices"]
    phantom = [sys.executable, "-m", "preprocess", "phantom"]
    with ThreadPoolExecutor(cores()) as threads:  # each waits for a process
        makers = [
            [*phantom, str(folder / f"{slices}"), *options, str(slices)] for slices in sorted(sizes, reverse=True)
        ]
        list(threads.map(partial(subprocess.run, check=True, capture_output=True), makers))
    for place, slices in enumerate(order):  # a source's studies are answered in the order of their names
        (study,) = images(folder, slices).iterdir()
        copy_study(study, images(folder, STREAM) / f"{study.name[:-3]}{place:03d}")


def images(folder: Path, name: object) -> Path:
    """The source of a size, or of the stream."""
    return folder / f"{name}/train_images"


def in_rounds(room: Room, sizes: Sequence[int], order: Sequence[int], repeats: Repeats) -> dict[str, Any]:
    """`sizes` and `stream` of `measure`. Within a round everything comes in random order."""
    found: dict[int, dict[str, Any]] = {
        slices: {"cold_s": [], "warm_s": [], "steps": {part: [] for part in PARTS}} for slices in sizes
    }
    between: list[float] = []
    chance = random.Random(0)
    room.answers(min(sizes))  # not measured: it loads the networks
    tasks = [(COLD, slices) for slices in sizes] + [(WARM, slices) for slices in sizes] * repeats.warm + [(STREAM, 0)]
    for _ in range(repeats.rounds):
        for kind, slices in chance.sample(tasks, len(tasks)):
            if kind == COLD:
                found[slices]["cold_s"].append(room.cold(slices))
            elif kind == STREAM:
                between += [each.seconds for each in room.answers(STREAM)[1:]]
            else:
                ((seconds, answer),) = room.answers(slices)
                found[slices]["in_box"] = answer.z_range[1] - answer.z_range[0]
                found[slices]["warm_s"].append(seconds)
                for part in PARTS:
                    found[slices]["steps"][part].append(answer.seconds[part])
    return {
        "sizes": {str(slices): each for slices, each in found.items()},
        "stream": {"order": list(order), "between_s": between},
    }


def table_of(found: dict[str, Any]) -> str:
    """What `measure` found, as text: medians and 95th percentiles, and every repeat."""
    parts = [f"{found['device']}; networks: {found['networks']}, {', '.join(found['models'])}"]
    head = ("slices", "in the box", "cold", "warm p50", "warm p95", *PARTS, "rest")
    rows, repeats = [], []
    for slices, own in found["sizes"].items():
        warm, steps = own["warm_s"], own["steps"]
        rest = [seconds - sum(each) for seconds, *each in zip(warm, *(steps[part] for part in PARTS), strict=True)]
        numbers = [p50(own["cold_s"]), p50(warm), p95(warm), *(p50(steps[part]) for part in PARTS), p50(rest)]
        rows.append((slices, str(own["in_box"]), *map(shown, numbers)))
        each = {COLD: own["cold_s"], WARM: warm, **{part: steps[part] for part in PARTS}}
        repeats += [(slices, name, " ".join(map(shown, values))) for name, values in each.items()]
    parts.append(table("Seconds from DICOM to the answer; medians where no percentile is named", head, rows))
    order, between = found["stream"]["order"], found["stream"]["between_s"]
    row = (" ".join(map(str, order)), shown(60 * len(between) / sum(between)), shown(p50(between)), shown(p95(between)))
    head = ("slices of the studies", "studies a minute", "p50", "p95")
    parts.append(table("A stream of studies; seconds from one answer to the next", head, [row]))
    repeats.append((STREAM, "", " ".join(map(shown, between))))
    parts.append(table("All repeats, in seconds", ("slices", "what", "in the order measured"), repeats))
    return "\n".join(parts)


def p50(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.5))


def p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95))


def shown(seconds: float) -> str:
    return f"{seconds:.2f}"


def report(full: bool | None, quick: bool) -> Iterator[str]:
    yield f"{machine()}\n"
    yield table_of(measure(full=full, quick=quick))


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="full=true|false, quick=true|false")
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    given = parser.parse_args(words)
    try:
        switches = assignments(given.words)
        for key in switches:
            require_known(key, ("full", "quick"), f"no setting {key}")
        chosen = {key: one_of(switches, key, ("false", "true")) == "true" for key in switches}
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    full, quick = chosen.get("full"), chosen.get("quick", False)
    card = torch.cuda.get_device_name().lower().split() if torch.cuda.is_available() else []
    name = "-".join(["exam", *card, *(["full"] if full and not card else [])])
    print_and_keep(report(full, quick), name, given.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
