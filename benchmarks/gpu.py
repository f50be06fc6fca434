"""Checks and measurements that need a GPU, in short parts: `python -m benchmarks.gpu PART ...`, in the given order.

    images                    the GPU's images against the CPU's (seconds; run it first)
    tests                     every test that needs a GPU
    ceiling                   items per second without a network
    train [STAGE:VARIANT ...] training steps of these variants, or of all, in bf16; writes configs/costs.yaml once all are measured

A part is stopped after 300 s. Each writes to benchmarks/results as it goes, so that its results survive the end of the machine.
Exit status: 0 all done, 1 a part failed or was stopped, 2 no GPU or no such part.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import torch

from benchmarks.rounds import print_and_keep
from trainer.settings.stage_registry import CONFIGS, stage_file, stage_names

SECONDS = 300
PYTEST = ["-m", "pytest", "tests/trainer/test_gpu.py", "-s"]
MODULES = {
    "images": [*PYTEST, "-x", "-k", "images"],
    "tests": PYTEST,
    "ceiling": ["-m", "benchmarks.ceiling", "--keep", "--seconds", "4"],
    "train": ["-m", "benchmarks.train", "--keep", f"--costs={CONFIGS / 'costs.yaml'}", "--steps=2", "--rounds=3"],
}
KEEP_THEMSELVES = ("ceiling", "train")


def main(words: list[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    if (parts := read(words)) is None:
        return 2
    if not torch.cuda.is_available():
        print("error: no GPU, and every part needs one", file=sys.stderr)
        return 2
    card = "-".join(torch.cuda.get_device_name().lower().split())
    done = [run(part, variants, card) for part, variants in parts]
    return 0 if all(done) else 1


def read(words: Sequence[str]) -> list[tuple[str, list[str]]] | None:
    """(part, variants) of each; None, after an error message, if a word is neither."""
    known = [f"{stage}:{variant}" for stage in stage_names() for variant in stage_file(stage)[1]]
    parts: list[tuple[str, list[str]]] = []
    for word in words:
        if word in MODULES:
            parts.append((word, []))
        elif word in known and parts and parts[-1][0] == "train":
            parts[-1][1].append(word)
        else:
            expected = f"{', '.join(MODULES)}, or after train some of {' '.join(known)}"
            print(f"error: no part {word}; expected {expected}", file=sys.stderr)
            return None
    return parts


def run(part: str, variants: Sequence[str], card: str) -> bool:
    """Whether the part succeeded in time."""
    command = [sys.executable, *MODULES[part]]
    if part == "train":
        command += [*(["--variants", *variants] if variants else []), "--", "train.precision=bf16"]
    print(f"== {part} {' '.join(variants)}", flush=True)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    began, late = time.monotonic(), threading.Timer(SECONDS, child.kill)
    late.start()
    try:
        lines = (line.rstrip("\n") for line in child.stdout or ())
        print_and_keep(lines, f"gpu-{part}-{card}", part not in KEEP_THEMSELVES)
        status = child.wait()
        over = time.monotonic() - began >= SECONDS
    finally:
        late.cancel()
        child.kill()
    if over:
        print(f"== {part}: {SECONDS} s are over", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
