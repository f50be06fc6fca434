"""Builds that are killed at random moments, as the command runs them, and what the next build makes of them."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from s3_server import S3Server
from stores import objects_of, place, start
from tiny_rsna import PREFIX, files_of

from cache_schema.errors import CspineError
from cache_schema.store_path import Place, StorePath, place_of
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache

PATIENCE_SECONDS = 120
LEFT_BY_A_KILL = (
    "on disk but not in the index",
    "its row in the index is not that of its record",
)
"""all that verify may say of a cache whose build was killed: the tables are behind, no study is partial"""

LEFT_IN_A_STORE = ("no such study", "in the index but not on disk")
"""and what it may say where nothing can be renamed: files of a study whose record was not written yet are no study"""


@dataclass
class Killed:
    kills: int = 0
    too_late: int = 0
    """the build had ended by itself"""
    not_whole: int = 0
    """verify named more than tables that are behind"""
    differing: int = 0
    """the next build did not end with the uninterrupted build's bytes"""


def kill_builds(source: Path, folder: Path, scheduler: str, count: int, seed: int = 0) -> Killed:
    """Kill `count` builds of `source`, then finish each on the workers of `scheduler` and compare all files.

    Half of the moments lie anywhere in a build, half after its first study was begun; a third of the kills leave the
    workers to themselves.
    """
    chance, killed = random.Random(seed), Killed()
    build_cache(source, folder / "whole", folds=2, scheduler=scheduler, tell=_quiet)
    whole = files_of(folder / "whole")
    for number in range(count):
        cache = folder / f"cache-{number}"
        command = [sys.executable, "-m", "preprocess", "build-cache", str(source), str(cache), "--folds", "2"]
        process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            began = _wait_for(cache / ".build" / ("new" if number % 2 else ""), process)
            time.sleep(chance.uniform(0, 0.4) if number % 2 else chance.uniform(0, 4))
            if began and process.poll() is None:
                killed.kills += 1
            else:
                killed.too_late += 1
            if number % 3:
                _kill_group(process)
            else:
                process.kill()
            process.wait()
            killed.not_whole += not only_behind(cache)
            build_cache(source, cache, folds=2, scheduler=scheduler, tell=_quiet)
            killed.differing += files_of(cache) != whole or verify(cache) != []
        finally:
            _kill_group(process)
    return killed


def kill_builds_into_store(
    source: Path, folder: Path, s3: S3Server, scheduler: str, count: int, seed: int = 0
) -> Killed:
    """The same for builds into a store, whose workers die with them; the environment leads to the store."""
    chance, killed = random.Random(seed), Killed()
    build_cache(source, folder / "whole", folds=2, scheduler=scheduler, tell=_quiet)
    whole = files_of(folder / "whole")
    for number in range(count):
        name = f"kills/{seed}/{number}"
        cache = place(s3, name)
        process = start(["build-cache", source, cache, "--folds", "2", "--workers", "1"])
        try:
            _wait_for_object(s3, f"{name}/{PREFIX if number % 2 else ''}", process)
            time.sleep(chance.uniform(0, 0.6) if number % 2 else chance.uniform(0, 6))
            if process.poll() is None:
                killed.kills += 1
            else:
                killed.too_late += 1
            _kill_group(process)
            process.communicate()
            killed.not_whole += not only_behind(place_of(cache))
            build_cache(source, cache, folds=2, scheduler=scheduler, tell=_quiet)
            killed.differing += objects_of(s3, name) != whole or verify(cache) != []
        finally:
            _kill_group(process)
    return killed


def only_behind(cache: Place) -> bool:
    """Whether a cache has nothing wrong with it but tables that are behind, or no root yet."""
    try:
        left = (*LEFT_BY_A_KILL, *LEFT_IN_A_STORE) if isinstance(cache, StorePath) else LEFT_BY_A_KILL
        return all(problem.endswith(left) for problem in verify(cache))
    except CspineError:
        return not (cache / "zarr.json").exists()


def _wait_for_object(s3: S3Server, prefix: str, process: subprocess.Popen) -> None:
    client, deadline = s3.client(), time.monotonic() + PATIENCE_SECONDS
    while not client.list_objects_v2(Bucket=s3.bucket, Prefix=prefix).get("Contents"):
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _wait_for(path: Path, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _quiet(line: str) -> None:
    return
