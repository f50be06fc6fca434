"""From measured times to what holds a training back, and the settings that change it. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainer.doctor.parts import PARTS
from trainer.doctor.steps import Steps

LEAST = 0.1
"""share of a step below which waiting, or computing, is not worth a line"""
UNEXPLAINED = 2
"""waiting more than so many times as long as the parts take is not explained by them"""
MEANING = {
    "read": "reading chunks from disk or store",
    "decode": "decompressing and checking chunks",
    "stretch": "stretching grey levels",
    "augment": "drawing augmentation parameters",
    "warp": "warping, normalising and cutting out",
    "targets": "making targets",
    "copy": "copying images for the network",
    "hand-over": "passing images between processes",
    "compute": "forward and backward pass, optimiser",
}


@dataclass(frozen=True)
class Machine:
    """What the advice depends on."""

    gpu: bool
    cores: int
    """that this process may use"""
    workers: int
    """reading processes"""
    loader: str
    """dali or plain"""
    resident: str
    in_store: bool
    """the cache lies in an object store"""
    store_cache: bool
    crops: bool
    """the variant reads crops"""
    whole_slices: bool
    """the cache holds whole slices"""
    size: int


class Finding(NamedTuple):
    """What holds a training back, and what to do about it."""

    part: str
    """one of MEANING"""
    share: float
    """of a step"""
    why: str
    switches: tuple[str, ...]


def findings(parts: Mapping[str, float], steps: Steps, machine: Machine) -> list[Finding]:
    """What takes most of a step first. parts: mean seconds per item, in one process; empty with data.resident=gpu."""
    share = steps.wait / steps.seconds
    computing = Finding("compute", 1 - share, "", _computing(machine))
    if not parts:
        return [computing]
    part = max(PARTS, key=lambda name: parts[name])
    each = sum(parts.values()) / max(1, machine.workers)
    if steps.wait / steps.items > UNEXPLAINED * each:
        part = "hand-over"
    why = f"{MEANING[part]} takes most of the time to make images"
    waiting = Finding(part, share, why, _advice(part, machine))
    found = sorted([computing, waiting], key=lambda each: -each.share)
    return [each for each in found if each.share >= LEAST]


def _advice(part: str, machine: Machine) -> tuple[str, ...]:
    advice = []
    if part == "read" and machine.in_store and not machine.store_cache:
        advice.append("data.store_cache=FOLDER on a local disk: what was read stays there")
    if part in ("read", "decode") and machine.resident == "disk":
        advice.append("data.resident=ram data.ram_gb=N: chunks are kept decoded, in each reading process")
        if machine.crops and machine.whole_slices:
            advice.append("preprocess set-boxes CACHE TABLE, then preprocess crop CACHE SMALL: only crops are read")
    if machine.workers < machine.cores - 1 and part != "hand-over":
        advice.append(f"data.workers={machine.cores - 1} (now {machine.workers}): images are made beside the network")
    if machine.gpu and machine.crops and machine.resident != "gpu":
        advice.append("data.resident=gpu: crops stay in GPU memory")
    if part == "warp" and not machine.gpu:
        advice.append(f"a smaller data.size= (now {machine.size}): another run; or a GPU, which warps by itself")
    if part == "hand-over" and machine.workers:
        advice.append("data.workers=0, or fewer: images pass through fewer hands")
    return tuple(advice) or (f"a machine with more cores than {machine.cores}, or a faster disk",)


def _computing(machine: Machine) -> tuple[str, ...]:
    if not machine.gpu:
        return (f"a GPU; on a CPU a smaller network or data.size= (now {machine.size}), which is another run",)
    return (
        "train.micro_batch=auto: as many items at once as the GPU holds",
        "train.precision=auto and train.autotune=true, where they were turned off",
        "train.evaluate_every=0 or config=configs/lean.yaml: less time beside training",
    )
