"""Flipped bits and lost files all over a cache: verify must name each."""

import random
from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import CspineError
from cache_schema.verify import verify


@dataclass
class Damaged:
    flips: int = 0
    flips_unnamed: int = 0
    deletions: int = 0
    deletions_unnamed: int = 0


def damage(cache: Path, flips: int, deletions: int, seed: int = 0) -> Damaged:
    """One change at a time, in a file drawn from all of the cache's, and back again."""
    chance, done = random.Random(seed), Damaged()
    files = sorted(path for path in cache.rglob("*") if path.is_file() and ".build" not in path.parts)
    for _ in range(flips):
        path = chance.choice(files)
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        done.flips += 1
        done.flips_unnamed += not _is_named(cache, path)
        path.write_bytes(data)
    for _ in range(deletions):
        path = chance.choice(files)
        data = path.read_bytes()
        path.unlink()
        done.deletions += 1
        done.deletions_unnamed += not _is_named(cache, path)
        path.write_bytes(data)
    if verify(cache):
        raise AssertionError("the cache is not as it was")
    return done


def _is_named(cache: Path, path: Path) -> bool:
    name = path.relative_to(cache).parts[0]
    try:
        return any(name in line for line in verify(cache))
    except CspineError as error:  # the root itself
        return name in str(error) or (path == cache / "zarr.json" and "is not a cache" in str(error))
