"""Builds that are killed at random moments, as the command runs them, and what the next build makes of them."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tiny_rsna import files_of

from cache_schema.errors import CspineError
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache

PATIENCE_SECONDS = 120
LEFT_BY_A_KILL = (
    "on disk but not in the index",
    "its row in the index is not that of its record",
)
"""all that verify may say of a cache whose build was killed: the tables are behind, no study is partial"""


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


def only_behind(cache: Path) -> bool:
    """Whether a cache has nothing wrong with it but tables that are behind, or no root yet."""
    try:
        return all(problem.endswith(LEFT_BY_A_KILL) for problem in verify(cache))
    except CspineError:
        return not (cache / "zarr.json").exists()


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
