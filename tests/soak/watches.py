"""A watch that is killed again and again while studies arrive in pieces."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from watching import Watched, same_answers

from preprocess.phantom.generate import write_phantom

SLICES = 12


@dataclass
class WatchKilled:
    studies: int
    kills: int
    answered: int = 0
    twice: int = 0
    """answered again though nothing of them had changed"""
    paused: int = 0
    """came with a pause after which they may count as whole: they are not judged by how often they were answered"""
    same: int = 0
    """whose answer is that of `trainer predict source=`"""
    status: int = 0
    """of the last process, on SIGTERM"""


def kill_watches(folder: Path, models: Path, studies: int, kills: int, seed: int = 0) -> WatchKilled:
    """Kills at random moments, each after the process has answered a study or has had time to."""
    folder.mkdir(parents=True, exist_ok=True)
    write_phantom(folder / "all", studies, slices=SLICES, segmented=0, syntax="explicit", seed=seed, progress=False)
    (folder / "in").mkdir()
    chance, done = random.Random(seed), WatchKilled(studies, kills)
    with Watched(folder / "in", folder / "out", models) as watched:
        watched.start()
        feeder = watched.feed(folder / "all/train_images", seed)
        for _ in range(kills):
            before = len(watched.answers())
            if before < studies:
                watched.wait_for(lambda before=before: len(watched.answers()) > before)
            time.sleep(chance.uniform(0, 2))
            watched.kill()
            watched.start()
        fed = json.loads(feeder.communicate()[0])
        watched.wait_for(lambda: len(watched.table()) == studies)
        done.answered = len(watched.answers())
        done.paused = sum(pause >= 2 for _, pause in fed.values())
        done.twice = len(watched.answered_more_than_once(fed))
        done.status = watched.end(signal.SIGTERM)
        done.same = same_answers(watched, folder / "whole")
    return done
