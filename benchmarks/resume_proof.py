"""Does a stopped epoch resume exactly? `python -m benchmarks.resume_proof`.

Reads two epochs without a stop, then again with two stops in the first and one in the second, every part in a new process. Counts
the items that differ, and the images that differ in any byte. Then does the same with Accelerate's own method: a prepared
DataLoader with augmentation by torch's generators, `save_state`, and in a new process `load_state` and `skip_first_batches`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from cache_schema import Cache
from preprocess.build.build_cache import build_cache
from preprocess.phantom.generate import write_phantom
from trainer.data.augment import Augmentation
from trainer.data.items import Item, triplets, windows
from trainer.data.loader import Loader
from trainer.data.order import Evaluation, Training
from trainer.data.source import Source
from trainer.settings.settings import AugmentSettings, DataSettings

BATCH, EPOCHS, SIZE = 4, 2, 64
Part = tuple[int, int]
"""first step, and last step (exclusive), over all epochs"""
Shown = list[tuple[str, str]]
"""(item, digest of its image) of each item"""
Reader = Callable[[Path, Path, Part], Shown]
"""(cache, folder for checkpoints, part) -> the items read"""


def items_of(cache: Path, kind: str) -> list[Item]:
    studies = [(row.id, int(row.slices)) for row in Cache(cache).index.itertuples()]
    return triplets(studies, every=2) if kind == "triplets" else windows(studies, 24, 6)


def steps_per_epoch(cache: Path, kind: str) -> int:
    return len(items_of(cache, kind)) // BATCH


def read_triplets(cache: Path, folder: Path, part: Part) -> Shown:
    return _read(cache, "triplets", part)


def read_windows(cache: Path, folder: Path, part: Part) -> Shown:
    return _read(cache, "windows", part)


def _read(cache: Path, kind: str, part: Part) -> Shown:
    first, last = part
    schedule = Training(items_of(cache, kind), 1, BATCH, step=first, by_block=kind == "triplets")
    augmentation = Augmentation(SIZE, 1, AugmentSettings(reverse=0.5), thin=0.6)
    source = Source(cache, schedule, augmentation, limit=(last - first) * BATCH)
    shown = []
    for batch in Loader(source, BATCH, DataSettings(size=SIZE), torch.device("cpu")):
        for entry, image in zip(batch.entries, torch.split(batch.images, batch.triplets), strict=True):
            shown.append(_shown(entry.item, image))
    return shown


class Augmented(Dataset):
    """A usual Dataset, whose augmentation uses torch's global generator."""

    def __init__(self, cache: Path):
        self.items = items_of(cache, "windows")
        self.source = Source(cache, Evaluation(self.items, 1), Augmentation(SIZE))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> tuple[int, torch.Tensor]:
        pixels = torch.from_numpy(self.source.read(k).pixels).float()
        return k, pixels[:, ::8, ::8, 0] * (0.8 + 0.4 * torch.rand(()))


def read_by_accelerate(cache: Path, folder: Path, part: Part) -> Shown:
    """By Accelerate's guide on checkpoints: saves the state after a part, and loads it before the next."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    set_seed(1)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    loader = accelerator.prepare(DataLoader(Augmented(cache), BATCH, shuffle=True, drop_last=True))
    first, last = part
    if first:
        accelerator.load_state(str(folder))
    epoch, skipped = divmod(first, len(loader))
    shown, step = [], first
    while step < last:
        loader.set_epoch(epoch)
        batches = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for keys, images in batches:
            shown += [_shown(int(key), image) for key, image in zip(keys, images, strict=True)]
            step += 1
            if step == last:
                break
        epoch, skipped = epoch + 1, 0
    accelerator.save_state(str(folder))
    return shown


def _shown(item: object, image: torch.Tensor) -> tuple[str, str]:
    return str(item), sha256(image.contiguous().numpy().tobytes()).hexdigest()


def stops(steps: int) -> list[int]:
    """Two in the first epoch, and one in the second."""
    return [steps // 3, steps // 2, steps + steps // 2]


def differing(read: Reader, cache: Path, folder: Path, steps: int) -> tuple[int, int, int]:
    """(images that differ between whole and parts, those of other items, all images)."""
    whole = _in_a_process(read, cache, folder / "whole", (0, EPOCHS * steps))
    parts: Shown = []
    for part in _parts(stops(steps), EPOCHS * steps):
        parts += _in_a_process(read, cache, folder / "parts", part)
    pairs = list(zip(whole, parts, strict=True))
    return sum(a != b for a, b in pairs), sum(a[0] != b[0] for a, b in pairs), len(whole)


def _parts(stops: list[int], end: int) -> Iterator[Part]:
    yield from zip([0, *stops], [*stops, end], strict=True)


def _in_a_process(read: Reader, *arguments: object) -> Shown:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(read, arguments)


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-proof-") as temporary:
        folder = Path(temporary)
        write_phantom(folder / "rsna", studies=4, slices=40, segmented=0, syntax="explicit", progress=False)
        build_cache(folder / "rsna", folder / "cache", folds=2, tell=lambda line: None)
        stopped = "stopped twice in the first and once in the second"
        print(f"{EPOCHS} epochs, {stopped}; every part in a new process; Accelerate {version('accelerate')}")
        wrong = 0
        for name, read, kind in (
            ("triplets, this loader", read_triplets, "triplets"),
            ("slice windows, this loader", read_windows, "windows"),
            ("slice windows, Accelerate's save_state and skip_first_batches", read_by_accelerate, "windows"),
        ):
            cache, own = folder / "cache", folder / name.replace(" ", "-")
            found, others, items = differing(read, cache, own, steps_per_epoch(cache, kind))
            wrong += found if read is not read_by_accelerate else 0
            more = f" ({others} are other items)" if found else ""
            print(f"{found} of {items} items differ: {name}{more}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
