"""Paired rounds: each round runs all methods in random order, and ratios are taken within a round.

Other work on the machine slows a whole round, not one side of a ratio. Aims are for ratios, not for absolute numbers.
"""

import argparse
import gc
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"


class Cost(NamedTuple):
    """Milliseconds of CPU time and of wall time."""

    cpu_ms: float
    wall_ms: float


def cost_of(work: Callable[[], object], parts: int = 1) -> Cost:
    """The cost in this process of one of the `parts` of some work."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost((time.process_time() - cpu) * 1e3 / parts, (time.perf_counter() - wall) * 1e3 / parts)


def run_rounds(methods: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Cost of every method in every round, after a warm-up round."""
    chance = random.Random(0)
    costs: dict[str, list[Cost]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name in chance.sample(list(methods), len(methods)):
            cost = methods[name]()
            if number:
                costs[name].append(cost)
    return costs


def cpu_ms(costs: Mapping[str, list[Cost]]) -> dict[str, list[float]]:
    return {name: [cost.cpu_ms for cost in found] for name, found in costs.items()}


@dataclass(frozen=True)
class Ratio:
    """One claim: the median of paired ratios, their range, and an aim (at least, or at most)."""

    HEAD = ("what", "median", "range", "aim", "met")

    name: str
    pairs: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @classmethod
    def of(cls, name: str, over: Sequence[float], under: Sequence[float], **aim: float) -> "Ratio":
        return cls(name, [a / b for a, b in zip(over, under, strict=True)], **aim)

    @property
    def met(self) -> bool:
        value = median(self.pairs)
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def row(self) -> tuple[str, ...]:
        aim = "" if self.at_least is None else f">= {self.at_least:g}"
        aim = aim if self.at_most is None else f"<= {self.at_most:g}"
        spread = f"{min(self.pairs):.2f} to {max(self.pairs):.2f}"
        return self.name, f"{median(self.pairs):.2f}", spread, aim, "" if not aim else "yes" if self.met else "NO"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table."""
    widths = [max(len(str(row[n])) for row in (head, *rows)) for n in range(len(head))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([title, *(line.rstrip() for line in lines)]) + "\n"


def options(doc: str | None, studies: int, slices: int, rounds: int, least: int) -> argparse.ArgumentParser:
    """A parser of the options that benchmarks over phantoms share, with these defaults. least: slices of a phantom."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=studies, help="phantoms, each of them under several names")
    parser.add_argument("--slices", type=int, default=slices, help=f"of each phantom, {least} or more")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    return parser


def print_and_keep(parts: Iterable[str], name: str, keep: bool) -> None:
    """Prints the parts of a report as they come. keep: writes them to benchmarks/results, too, under the machine's name."""
    text: list[str] = []
    path = kept_file(name)
    for part in parts:
        print(part, flush=True)
        text.append(part)
        if keep:  # after each part: a rented machine may end before the last
            RESULTS.mkdir(exist_ok=True)
            path.write_text("\n".join(text))


def kept_file(name: str, suffix: str = ".txt") -> Path:
    """The file in benchmarks/results for this machine."""
    return RESULTS / f"{name}-{'-'.join(cpu_name().lower().split())}-{cores()}core{suffix}"


def cpu_name() -> str:
    """The processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """One line: processor, cores, system load, Python version."""
    return f"{cpu_name()}, {cores()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
