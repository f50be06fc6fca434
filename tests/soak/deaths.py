"""Tasks that kill the process they are in, among many sound ones: the sound are all there, the deadly say how they died."""

import ctypes
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from preprocess.build.isolated_task import Died

HANG_SECONDS = 0.3


def segfault() -> None:
    ctypes.string_at(0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    from preprocess.build.watchdog import deadline  # here, so that a process that dies another way begins soon

    with deadline(HANG_SECONDS):
        sum(range(10**10))  # one call into C that holds the interpreter's lock all the while


WAYS: dict[str, Callable[[], None]] = {
    "died of SIGSEGV": segfault,
    "died of SIGABRT": os.abort,
    "died of SIGKILL": kill,
    "exit status 3": leave,
    f"hung for {HANG_SECONDS} s": hang,
}
"""what must be said of a death, and how to die it"""
CROWDED = "crowded"
"""a task that cannot do with a worker, but has nothing wrong with it"""


def task(name: str) -> str:
    """Dies in the way that it is called by, or gives back its name."""
    if name in WAYS:
        WAYS[name]()
    if name == CROWDED and multiprocessing.parent_process() is not None:
        kill()
    return name.upper()


@dataclass
class Deaths:
    rounds: int = 0
    sound: int = 0
    deadly: int = 0
    sound_lost: int = 0
    """sound tasks without their result"""
    unnamed: int = 0
    """deadly ones that do not say what they died of"""


def die_among_the_sound(workers: int, ways: list[str], sound: int, rounds: int = 1, seed: int = 0) -> Deaths:
    """Run the deadly tasks of `ways`, in any order among the sound ones, on a pool of so many local workers."""
    from preprocess.build.dask_pool import Pool

    chance, done = random.Random(seed), Deaths()
    for _ in range(rounds):
        names = [*ways, CROWDED, *(f"sound {number}" for number in range(sound))]
        chance.shuffle(names)
        with Pool(workers, None, lambda line: None) as pool:
            found = dict(pool.run(task, names))
        for number, name in enumerate(names):
            result = found[number]
            if name in WAYS:
                done.deadly += 1
                done.unnamed += not (isinstance(result, Died) and name in result.message)
            else:
                done.sound += 1
                done.sound_lost += result != name.upper()
        done.rounds += 1
    return done
