"""What only a GPU shows, in short parts: `python -m benchmarks.gpu PART ...`, in the order given.

    images                    the GPU's images against the CPU's (seconds: do this first)
    tests                     every test that needs a GPU
    ceiling                   items a second without a network
    train [STAGE:VARIANT ...] training steps of these variants, or of all, in bf16; once all were measured, configs/costs.yaml

A part takes 300 s at most. Each writes what it has found into benchmarks/results as it goes, so that nothing is lost where the
machine is taken away. Exit status: 0 all done, 1 a part failed or ran out of time, 2 no GPU or no such part.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import torch

from benchmarks.rounds import print_and_keep
from trainer.settings.registry import CONFIGS, stage_file, stage_names

SECONDS = 300
PYTEST = ["-m", "pytest", "tests/trainer/test_gpu.py", "-s"]
MODULES = {
    "images": [*PYTEST, "-x", "-k", "images"],
    "tests": PYTEST,
    "ceiling": ["-m", "benchmarks.ceiling", "--keep", "--seconds", "4"],
    "train": [
        "-m",
        "benchmarks.train",
        "--keep",
        "--costs",
        str(CONFIGS / "costs.yaml"),
        "--steps",
        "2",
        "--rounds",
        "3",
    ],
}
KEEP_THEMSELVES = ("ceiling", "train")


def main(words: list[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
    if (parts := read(words)) is None:
        return 2
    if not torch.cuda.is_available():
        print("error: there is no GPU here, and every part needs one", file=sys.stderr)
        return 2
    card = "-".join(torch.cuda.get_device_name().lower().split())
    done = [run(part, variants, card) for part, variants in parts]
    return 0 if all(done) else 1


def read(words: Sequence[str]) -> list[tuple[str, list[str]]] | None:
    """(part, variants) of each; None, once it was said, where a word is neither."""
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
    """Whether it ended well and in time."""
    command = [sys.executable, *MODULES[part]]
    if part == "train":
        command += [*(["--variants", *variants] if variants else []), "--", "train.precision=bf16"]
    print(f"== {part} {' '.join(variants)}", flush=True)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    over = threading.Event()
    late = threading.Timer(SECONDS, lambda: (over.set(), child.kill()))
    late.start()
    try:
        print_and_keep(lines_of(child), f"gpu-{part}-{card}", part not in KEEP_THEMSELVES)
        status = child.wait()
    finally:
        late.cancel()
        child.kill()
    if over.is_set():
        print(f"== {part}: {SECONDS} s are over", flush=True)
    return status == 0


def lines_of(child: subprocess.Popen) -> Iterator[str]:
    for line in child.stdout:
        yield line.rstrip("\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
