"""DICOM files with random damage, each a study of its own: kept or refused with a reason, by a run that goes on."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from dicom_files import dataset, encode, picture, write
from distributed import Client
from pydicom import uid
from pydicom.encaps import encapsulate

from cache_schema import Cache
from preprocess.build.build_cache import build_cache
from preprocess.findings import REASONS

SYNTAXES = (
    *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.JPEGLosslessSV1, uid.JPEGLossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless),
)
BATCH = 40
PREFIX = "1.2.826.0.1.3680043.8.498.99"


@dataclass
class Mutated:
    files: int = 0
    kept: int = 0
    refused: int = 0
    unexplained: int = 0
    """neither kept nor refused for a documented reason"""
    workers_died: int = 0
    slowest_batch_seconds: float = 0.0
    largest_worker_mb: float = 0.0


def build_mutations(folder: Path, scheduler: str, count: int, seed: int = 0) -> Mutated:
    """Write `count` damaged files and build a cache of every 40 of them. What no exception may leave is a lost run."""
    chance, done = random.Random(seed), Mutated()
    with Client(scheduler) as client:
        for first in range(0, count, BATCH):
            source, ids = folder / f"source-{first}", []
            for number in range(first, min(first + BATCH, count)):
                ids.append(f"{PREFIX}.{number}")
                path = write_whole_file(source / "train_images" / ids[-1] / "1.dcm", ids[-1], number)
                path.write_bytes(mutate(path.read_bytes(), chance))
            began = time.monotonic()
            build_cache(source, folder / f"cache-{first}", scheduler=scheduler, tell=lambda line: None)
            done.slowest_batch_seconds = max(done.slowest_batch_seconds, time.monotonic() - began)
            done.largest_worker_mb = max(done.largest_worker_mb, *client.run(peak_memory_mb).values())
            _count(done, folder / f"cache-{first}", ids)
    return done


def _count(done: Mutated, cache: Path, ids: list[str]) -> None:
    """A file whose StudyInstanceUID was hit has become another study: the numbers must still match."""
    kept = Cache(cache).ids
    report = pd.read_csv(cache / "report.csv", dtype=str, keep_default_na=False)
    refused = report[report["severity"] == "refused"]
    known = refused["reason"].isin(list(REASONS))
    explained = {*kept, *refused["id"][known]} - {""}
    nameless = int((refused["id"] == "").sum())
    done.files += len(ids)
    done.kept += len(kept)
    done.refused += len(ids) - len(kept)
    done.workers_died += int((refused["reason"] == "worker_died").sum())
    done.unexplained += max(0, len(set(ids) - explained) - len(explained - set(ids)) - nameless)
    done.unexplained += int((~known).sum())


def write_whole_file(path: Path, study: str, number: int) -> Path:
    """A good slice, of a syntax and depth of its own, sometimes of several frames."""
    syntax, bits = SYNTAXES[number % len(SYNTAXES)], (12, 16)[number // len(SYNTAXES) % 2]
    ds = dataset(picture(number % 5), syntax=syntax, bits=bits, signed=bits == 16, study=study)
    if number % 7 == 0 and bits == 16:
        frames = [encode(picture(k), syntax, bits) for k in range(2)]
        ds.NumberOfFrames = "2"
        ds.PixelData = encapsulate(frames) if uid.UID(syntax).is_encapsulated else b"".join(frames)
    return write(path, ds)


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, lengths made huge, pieces cut out, doubled or moved; anywhere, or in the header alone."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 20))):
        at = chance.randrange(128, len(data) if chance.random() < 0.5 else min(len(data), 1000))
        kind = chance.randrange(6)
        if kind <= 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 3:
            data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"))
        elif kind == 4:
            del data[at : at + chance.choice((1, 2, 8, 100))]
        else:
            data[at:at] = data[at : at + chance.choice((1, 8, 100))]
        if len(data) < 200:
            break
    return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.1 else data)


def peak_memory_mb() -> float:
    """Of this process since it began, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status")
