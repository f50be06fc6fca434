"""Items per second of the loader without a network, from disk, RAM and GPU memory: `python -m benchmarks.ceiling`.

Uses reading processes and the GPU, if there is one; then it also compares the GPU's images with the CPU's.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.rounds import machine, print_and_keep, table
from cache_schema import Cache
from preprocess.build.build_cache import build_cache
from preprocess.phantom.generate import write_phantom
from trainer.data.augment import Augmentation
from trainer.data.image import STD
from trainer.data.items import triplets, windows
from trainer.data.loader import Loader
from trainer.data.order import Training
from trainer.data.resident import Crops
from trainer.data.source import TRIPLET_CHUNKS_BYTES, Source
from trainer.settings.layers import load
from trainer.settings.settings import DataSettings
from trainer.tuning.autotune import wait

BOX = (100, 110, 400, 410)
RAM_BYTES = 16 << 30
KINDS = {"windows": ("vertebrae", 4), "triplets": ("bbox", 64)}
"""kind of item -> stage whose augmentation it uses, items per batch"""


def loader(cache: Path, kind: str, resident: str, device: torch.device, workers: int) -> Loader:
    stage, batch = KINDS[kind]
    studies = [(row.id, int(row.slices)) for row in Cache(cache).index.itertuples()]
    items = windows(studies, 96, 12) if kind == "windows" else triplets(studies, every=1)
    augmentation = Augmentation(512, 1, load([f"stage={stage}", "cache=.", "out=."], must_exist=False).augment)
    keep = {"disk": TRIPLET_CHUNKS_BYTES if kind == "triplets" else 0, "ram": RAM_BYTES, "gpu": 0}[resident]
    schedule = Training(items, 1, batch, by_block=kind == "triplets")
    source = Source(cache, schedule, augmentation, dict.fromkeys(Cache(cache).ids, BOX), keep_bytes=keep)
    crops = Crops(Cache(cache), device) if resident == "gpu" else None
    return Loader(source, batch, DataSettings(workers=workers, resident=resident), device, crops=crops)


def pace(found: Loader, seconds: float) -> float:
    """Items per second, after the first batches."""
    batches = iter(found)
    for _ in islice(batches, 4):
        pass
    wait(found.device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += len(next(batches).entries)
    wait(found.device)
    return count / (time.perf_counter() - began)


def levels_apart(cache: Path, kind: str, device: torch.device) -> tuple[float, float]:
    """Largest difference in grey levels between the device's images and the CPU's, and the fraction above 1.3."""
    cpu = next(iter(loader(cache, kind, "disk", torch.device("cpu"), 0))).images.float().numpy()
    gpu = next(iter(loader(cache, kind, "disk", device, 0))).images.float().cpu().numpy()
    apart = np.abs(cpu - gpu) * STD[:, None, None]
    return float(apart.max()), float((apart > 1.3).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=8)
    parser.add_argument("--slices", type=int, default=256)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="reading processes")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--cache", type=Path, help="a cache instead of phantoms")
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    given = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print_and_keep(report(given, gpu), "-".join(["ceiling", *(gpu or "").lower().split()]), given.keep)


def report(given: argparse.Namespace, gpu: str | None) -> Iterator[str]:
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    yield f"{machine()}; {gpu or 'no GPU'}; {given.workers} reading processes; 512 px, full augmentation\n"
    with tempfile.TemporaryDirectory(prefix="ceiling-") as folder:
        cache = given.cache
        if cache is None:
            cache = Path(folder) / "cache"
            write_phantom(Path(folder) / "rsna", given.studies, given.slices, 0, syntax="explicit", progress=False)
            build_cache(Path(folder) / "rsna", cache, folds=2, tell=lambda line: None)
        rows = []
        for kind in KINDS:
            for resident in ("disk", "ram", *(["gpu"] if gpu else [])):
                found = loader(cache, kind, resident, device, 0 if resident == "gpu" else given.workers)
                rows.append((kind, resident, f"{pace(found, given.seconds):.1f}"))
        yield table("items per second without a network", ("items", "source", "per second"), rows)
        if gpu:
            apart = [(kind, *(f"{value:.4f}" for value in levels_apart(cache, kind, device))) for kind in KINDS]
            yield table("GPU's images against the CPU's, grey levels", ("items", "largest", "fraction over 1.3"), apart)


if __name__ == "__main__":
    main()
