"""`make soak`: what is tried a few times by the tests, by the hundred. Prints a table; exit status 1 where anything was found."""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bundles import try_bundles
from damage import damage
from deaths import WAYS, die_among_the_sound
from endings import end_plans
from faults import BUILDS, COMMANDS, Places, plant_faults
from flips import flip_everything, make_plan
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from image import try_image
from kills import Killed, kill_builds, kill_builds_into_store
from machine import SourceAndCache
from memory import peak_of_a_build, peaks_of_predictions
from mutations import build_mutations
from pytest import fail
from s3_server import environment, s3_server
from tiny_rsna import write_rsna
from trainer_faults import COMMANDS as TRAINER_COMMANDS
from trainer_faults import Places as TrainerPlaces
from trainer_faults import plant_trainer_faults
from trainings import kill_all_stages, make_models, write_inputs
from watches import kill_watches

from preprocess.build.build_cache import build_cache
from preprocess.build.dask_pool import local_cluster
from trainer.pack import main as pack

TRIALS = [
    "faults",
    "damage",
    "memory",
    "predictions",
    "machine",
    "mutations",
    "deaths",
    "kills",
    "store-kills",
    "trainings",
    "flips",
    "trainer-faults",
    "endings",
    "bundles",
    "watch",
    "image",
]
SECONDS_AT_MOST, MB_AT_MOST, GROWTH_AT_MOST = 10, 1024, 1.10
PREDICTION_GROWTH_AT_MOST = 1.05

Row = tuple[str, str, bool]
"""what was tried, what was seen, whether that is all well"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--store-kills", type=int, default=20, help="of builds into a store")
    parser.add_argument("--training-kills", type=int, default=10, help="of each stage")
    parser.add_argument(
        "--launches", type=int, default=10, help="of each build, in each of whose processes something fails"
    )
    parser.add_argument("--trainer-faults", type=int, default=50, help="failures of the system in each trainer command")
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--run-flips", type=int, default=200, help="in what a plan has made")
    parser.add_argument("--deletions", type=int, default=50)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--deaths", type=int, default=20, help="runs with deadly tasks, on one worker and on four each")
    parser.add_argument("--endings", type=int, default=50, help="of plans, in every way")
    parser.add_argument("--runs", type=int, default=20, help="of the state machine")
    parser.add_argument("--steps", type=int, default=30, help="of each of its runs")
    parser.add_argument("--slices", type=int, default=1000, help="of the longer study whose memory is measured")
    parser.add_argument("--studies", type=int, default=200, help="of the longer prediction whose memory is measured")
    parser.add_argument("--arriving", type=int, default=100, help="studies that arrive in a watched folder")
    parser.add_argument("--watch-kills", type=int, default=10, help="of the watch meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=TRIALS, metavar="TRIAL", help=", ".join(TRIALS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, local_cluster(2) as cluster:
        folder, scheduler = Path(folder), cluster.scheduler_address
        source = write_rsna(folder / "rsna")
        build_cache(source, folder / "cache", folds=2, scheduler=scheduler, tell=lambda line: None)
        trials: dict[str, Callable[[], list[Row]]] = {
            "faults": lambda: _faults(source, folder, scheduler, given),
            "damage": lambda: _damage(folder, given),
            "memory": lambda: _memory(folder, given.slices),
            "predictions": lambda: _predictions(folder / "predictions", given.studies),
            "machine": lambda: _machine(scheduler, given),
            "mutations": lambda: _mutations(folder, scheduler, given),
            "deaths": lambda: _deaths(given),
            "kills": lambda: _kills(source, folder, scheduler, given),
            "store-kills": lambda: _store_kills(source, folder, given),
            "trainings": lambda: _trainings(folder, given),
            "endings": lambda: end_plans(folder / "endings", given.endings, given.seed),
            "trainer-faults": lambda: _trainer_faults(folder / "trainer-faults", given.trainer_faults),
            "flips": lambda: _flips(folder / "flips", given),
            "bundles": lambda: _bundles(folder / "bundles"),
            "watch": lambda: _watch(folder / "watch", given),
            "image": lambda: _image(folder / "image"),
        }
        good = True
        for name in given.only:
            trial, began = trials[name], time.monotonic()
            with contextlib.redirect_stderr(io.StringIO()):  # hundreds of builds show how far they are
                rows = trial()
            for what, seen, well in rows:
                good &= well
                print(f"{'ok' if well else 'WRONG':5}  {what:58}  {seen}", flush=True)
            print(f"       ({name}: {time.monotonic() - began:.0f} s)", flush=True)
    return 0 if good else 1


def _faults(source: Path, folder: Path, scheduler: str, given: argparse.Namespace) -> list[Row]:
    places = Places.make(folder / "faults", source, folder / "cache")
    chance, rows = random.Random(given.seed), []
    for name in COMMANDS:
        launched = sorted(chance.sample(range(1, 100), min(99, given.launches)))
        failed = plant_faults(places, name, scheduler, launched if name in BUILDS else [])
        for line in failed.wrong:
            print(line)
        what = f"{failed.tried} failures of the system in {name}: one line, and mended by the next run"
        rows.append((what, f"{len(failed.wrong)} not", not failed.wrong))
    return rows


def _damage(folder: Path, given: argparse.Namespace) -> list[Row]:
    done = damage(folder / "cache", given.flips, given.deletions, given.seed)
    return [
        (f"{done.flips} flipped bits, each named by verify", f"{done.flips_unnamed} not", not done.flips_unnamed),
        (
            f"{done.deletions} lost files, each named by verify",
            f"{done.deletions_unnamed} not",
            not done.deletions_unnamed,
        ),
    ]


def _memory(folder: Path, slices: int) -> list[Row]:
    few, many = peak_of_a_build(folder, slices // 10), peak_of_a_build(folder, slices)
    seen = f"{few:.0f} and {many:.0f} MB"
    return [
        (f"peak memory at {slices // 10} and {slices} slices, less than 10 % apart", seen, many < GROWTH_AT_MOST * few)
    ]


def _predictions(folder: Path, studies: int) -> list[Row]:
    folder.mkdir()
    few, many = peaks_of_predictions(folder, make_models(folder / "models"), studies // 10, studies)
    seen = f"{few:.0f} and {many:.0f} MB"
    well = many < PREDICTION_GROWTH_AT_MOST * few
    return [(f"peak memory of predict for {studies // 10} and {studies} studies, less than 5 % apart", seen, well)]


def _machine(scheduler: str, given: argparse.Namespace) -> list[Row]:
    class Machine(SourceAndCache):
        pass

    Machine.scheduler = scheduler
    what = f"{given.runs} runs of up to {given.steps} steps: add, remove, change, kill, build, verify"
    try:
        run_state_machine_as_test(Machine, settings=machine_settings(given.runs, given.steps))
    except (Exception, fail.Exception):  # pytest.raises fails with no Exception
        traceback.print_exc(file=sys.stdout)
        return [(what, "something was found", False)]
    return [(what, "nothing was found", True)]


def machine_settings(runs: int, steps: int) -> settings:
    """No shrinking: a build takes long, and kills do not come twice at the same moment."""
    return settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _mutations(folder: Path, scheduler: str, given: argparse.Namespace) -> list[Row]:
    done = build_mutations(folder / "mutations", scheduler, given.mutations, given.seed)
    slow, large = done.slowest_batch_seconds, done.largest_worker_mb
    return [
        (
            f"{done.files} mutated files, each kept or refused with a reason",
            f"{done.kept} kept, {done.refused} refused, {done.unexplained} unexplained, {done.workers_died} workers died",
            not done.unexplained,
        ),
        (f"no hang over {SECONDS_AT_MOST} s", f"slowest 40 files {slow:.1f} s", slow < SECONDS_AT_MOST),
        (f"no worker over {MB_AT_MOST} MB", f"largest {large:.0f} MB", large < MB_AT_MOST),
    ]


def _deaths(given: argparse.Namespace) -> list[Row]:
    rows = []
    for workers in (1, 4):
        done = die_among_the_sound(workers, [*WAYS], sound=40, rounds=given.deaths, seed=given.seed)
        what = f"{done.deadly} deadly tasks among {done.sound} sound ones, {done.rounds} runs, workers: {workers}"
        seen = f"{done.sound_lost} sound ones lost, {done.unnamed} deaths unnamed"
        rows.append((what, seen, not done.sound_lost and not done.unnamed))
    return rows


def _kills(source: Path, folder: Path, scheduler: str, given: argparse.Namespace) -> list[Row]:
    return _after_kills(kill_builds(source, folder / "kills", scheduler, given.kills, given.seed), "builds")


def _store_kills(source: Path, folder: Path, given: argparse.Namespace) -> list[Row]:
    # the workers take over the environment that leads to the store
    with s3_server() as s3, environment(s3.environment), local_cluster(2) as cluster:
        scheduler = cluster.scheduler_address
        done = kill_builds_into_store(source, folder / "store-kills", s3, scheduler, given.store_kills, given.seed)
    return _after_kills(done, "builds into a store")


def _after_kills(done: Killed, what: str) -> list[Row]:
    return [
        (
            f"{done.kills} {what} killed ({done.too_late} more had ended)",
            f"{done.not_whole} left a study that is not whole",
            not done.not_whole,
        ),
        ("each followed by a build to the uninterrupted one's bytes", f"{done.differing} not", not done.differing),
    ]


def _trainings(folder: Path, given: argparse.Namespace) -> list[Row]:
    rows = []
    for stage, done in kill_all_stages(folder / "trainings", given.training_kills, given.seed).items():
        what = f"{done.kills} kills of {done.trainings} trainings of {stage} ({done.too_late} more had ended)"
        seen = f"{done.differing} ended with other weights, {done.logs_differing} logged other steps"
        rows.append((what, seen, not done.differing and not done.logs_differing))
    return rows


def _watch(folder: Path, given: argparse.Namespace) -> list[Row]:
    folder.mkdir()
    done = kill_watches(
        folder / "watched", make_models(folder / "models"), given.arriving, given.watch_kills, given.seed
    )
    what = f"{done.studies} studies that arrived in pieces, {done.kills} kills of the watch"
    seen = (
        f"{done.answered} answered, {done.twice} twice ({done.paused} came with long pauses), {done.same} as by predict"
    )
    well = done.answered == done.same == done.studies and not done.twice and done.status == 143
    return [(what, seen, well)]


def _image(folder: Path) -> list[Row]:
    folder.mkdir()
    folder.chmod(0o755)
    return try_image(folder, make_models(folder / "models"))


def _flips(folder: Path, given: argparse.Namespace) -> list[Row]:
    write_inputs(folder / "inputs", count=6, slices=30)
    done = flip_everything(make_plan(folder / "plan", folder / "inputs/cache"), given.run_flips, given.seed)
    for line in done.wrong:
        print(line)
    what = f"{done.flips} flipped bits below RUNS: named or made again, and the tables the same"
    seen = f"{len(done.unnamed)} neither, {len(done.silent)} changed a table, {len(done.broken)} stopped something"
    return [(what, seen, not done.wrong)]


def _trainer_faults(folder: Path, count: int) -> list[Row]:
    write_inputs(folder / "inputs", count=6, slices=30)
    places, rows = TrainerPlaces.make(folder / "places", folder / "inputs/cache"), []
    for name in TRAINER_COMMANDS:
        failed = plant_trainer_faults(places, name, count)
        for line in failed.wrong:
            print(line)
        what = f"{failed.tried} failures of the system in {name}: one line, and mended by the next run"
        rows.append((what, f"{len(failed.wrong)} not", bool(failed.tried) and not failed.wrong))
    return rows


def _bundles(folder: Path) -> list[Row]:
    models = folder / "models.cspine"
    if pack([str(make_models(folder / "models")), f"out={models}"]):
        return [("the models of a bundle", "were not packed", False)]
    return try_bundles(folder, models)


if __name__ == "__main__":
    sys.exit(main())
