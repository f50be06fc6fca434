"""Commands of `trainer` of which the n-th file operation fails: one line, an exit status, and the next run mends it."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree, rmtree

from planting import REASONS, planted
from safetensors.numpy import load_file

from cache_schema import Cache
from cache_schema.tables import content_digest, read_table
from trainer import predict, run
from trainer.look import __main__ as look
from trainer.plan import __main__ as plan
from trainer.plan.costs import read_costs
from trainer.plan.execute import Execution
from trainer.plan.graph import read_plan
from trainer.plan.launch import RunOrder, RunOutcome
from trainer.tables import __main__ as tables

SETTINGS = """
model: {name: test_efficientnet_gn, pretrained: false, chunk: 8}
data: {size: 64, frames: 12, stride: 6, eval_stride: 8}
train: {epochs: 1, batch: 4, micro_batch: 4, eval_batch: 3, evaluate_every: 0, threads: 1, checkpoint_minutes: 0, log_every: 1}
deterministic: true
tracker: none
stages:
  bbox: {train: {batch: 16, micro_batch: 16}}
  study_fracture: {train: {batch: 1, micro_batch: 1}}
"""
PLAN = """
config: settings.yaml
tables: {presence: 0.05, z_presence: 0.05}
runs:
- {stage: bbox, folds: [0, 1]}
- {stage: vertebrae, variant: 02G, folds: [0, 1]}
- {stage: slice_fracture, folds: [0, 1]}
- {stage: study_fracture, folds: [0, 1]}
"""
STATUSES = (0, 1, 2)
BBOX = "bbox-01B/fold0-seed1"


@dataclass(frozen=True)
class Command:
    """words: with {cache}, {runs}, {bare}, {new}, {settings} and {plan}. makes: the place whose results are compared."""

    main: Callable[[list[str]], int]
    words: str
    makes: str | None = None


COMMANDS = {
    "run": Command(run.main, "stage=bbox cache={cache} out={new} config={settings} tracker=tensorboard", "new"),
    "run again": Command(run.main, "stage=bbox cache={cache} out={runs} config={settings}", "runs"),
    "run mode=predict": Command(
        run.main,
        f"stage=bbox cache={{cache}} out={{new}} config={{settings}} mode=predict weights={{runs}}/{BBOX} split=all",
        "new",
    ),
    "plan dry_run": Command(plan.main, "{plan} cache={cache} out={runs} dry_run=true"),
    "plan": Command(plan.main, "{plan} cache={cache} out={bare}", "bare"),
    "tables": Command(tables.main, "{bare} cache={cache}", "bare"),
    "tables export": Command(tables.main, "{runs} cache={cache} export=rsna22", "runs"),
    "predict": Command(predict.main, "source={cache} models={runs} out={new} slices=true train.threads=1", "new"),
    "look stage=": Command(look.main, "stage=bbox cache={cache} out={new} config={settings} items=4", "new"),
    "look tables=": Command(look.main, "tables={runs} cache={cache} out={new} items=2", "new"),
}
LONG = ("run", "predict")
"""that take seconds"""


@dataclass
class Failed:
    """tried: failures that were met. wrong: what was seen that must not be, each with the command and its failure."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)


class Here:
    """A plan's pool that makes its runs in this process."""

    slots, spreads = 1, False

    def submit(self, order: RunOrder, width: int) -> Future[RunOutcome]:
        future: Future[RunOutcome] = Future()
        status, out, err = quietly(run.main, list(order.words))
        future.set_result(RunOutcome(status, 0.0, (out + err).splitlines()))
        return future

    def stop(self) -> None:
        return


@dataclass(frozen=True)
class Places:
    """The paths that commands are given: a cache that is only read, and everything that a plan makes of it."""

    folder: Path
    cache: Path

    @classmethod
    def make(cls, folder: Path, cache: Path) -> "Places":
        places = cls(folder, cache)
        folder.mkdir(parents=True)
        (folder / "settings.yaml").write_text(SETTINGS)
        (folder / "plan.yaml").write_text(PLAN)
        whole = read_plan(folder / "plan.yaml", cache, folder / "whole")
        if failed := Execution(whole, Cache(cache), folder / "whole", Here(), read_costs(whole)).run():
            raise AssertionError(f"undisturbed, these failed: {failed}")
        return places

    def fresh(self) -> dict[str, Path]:
        """Everything as before the first command. bare: runs without their tables."""
        made = {name: self.folder / "made" / name for name in ("runs", "bare", "new")}
        rmtree(self.folder / "made", ignore_errors=True)
        for name in ("runs", "bare"):
            copytree(self.folder / "whole", made[name])
        for path in (made["bare"] / "tables").iterdir():
            if path.name.startswith(("study_predictions", "submission", "scores", "calibration")):
                path.unlink()
        return made | {
            "cache": self.cache,
            "settings": self.folder / "settings.yaml",
            "plan": self.folder / "plan.yaml",
        }


def quietly(main: Callable[[list[str]], int], words: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(words)
        except BaseException as error:
            status = -1
            print(f"Traceback: {error!r}", file=err)
    return status, out.getvalue(), err.getvalue()


class Trial:
    """One command, whose undisturbed outcome is known."""

    def __init__(self, places: Places, command: Command):
        self.places, self.command = places, command
        paths = places.fresh()
        with planted(self.given(paths), 0) as counting:
            status, out, err = quietly(command.main, self.words(paths))
        if status:
            raise AssertionError(f"{command.words} undisturbed: {out}{err}")
        self.operations, self.outcome = counting.seen, self.results(paths)

    def words(self, paths: dict[str, Path]) -> list[str]:
        return self.command.words.format(**paths).split()

    def given(self, paths: dict[str, Path]) -> list[Path]:
        words = " ".join(self.words(paths))
        return [path for path in paths.values() if str(path) in words]

    def results(self, paths: dict[str, Path]) -> dict[str, str] | None:
        return results_of(paths[self.command.makes]) if self.command.makes else None

    def fail(self, nth: int, failed: Failed) -> None:
        reason, paths = REASONS[nth % len(REASONS)], self.places.fresh()
        with planted(self.given(paths), nth, reason) as plant:
            status, out, err = quietly(self.command.main, self.words(paths))
        if plant.seen < nth:
            return
        failed.tried += 1
        what = f"{self.command.words}: {os.strerror(reason)} at operation {nth}"
        failed.wrong += [f"{what}: {fault}" for fault in faults_of(status, out, err)]
        if status == 0 and self.results(paths) == self.outcome:
            return
        again, out, err = quietly(self.command.main, self.words(paths))
        found = self.results(paths)
        if again or found != self.outcome:
            differing = sorted(set((found or {}).items()) ^ set((self.outcome or {}).items()))
            failed.wrong.append(f"{what}: the next run ended with {again}, {differing[:4]}: {(out + err)[-1500:]}")


def faults_of(status: int, out: str, err: str) -> list[str]:
    """What must not be in what a command said and how it ended."""
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    refused = status == 3 and ": refused: " in err  # a study that could not be read, named; the others are answered
    rules = [
        (refused or status in STATUSES, f"exit status {status}"),
        ("Traceback" not in out + err, "a traceback"),
        (len(lines) == (bool(status) and not refused), f"{len(lines)} errors and status {status}"),
    ]
    return [f"{words}: {(out + err).strip()[-1500:]}" for well, words in rules if not well]


def results_of(folder: Path) -> dict[str, str]:
    """Digest of what is to be read: tables by their content, weights by their tensors, texts and pictures by their bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts) or "look" in Path(name).parts:
            continue
        if path.suffix == ".parquet":
            found[name] = content_digest(read_table(path))
        elif path.suffix == ".safetensors":  # its metadata come in any order
            tensors = sorted((key, value.tobytes()) for key, value in load_file(path).items())
            found[name] = hashlib.sha256(repr(tensors).encode()).hexdigest()
        elif path.suffix in (".csv", ".gz", ".png") or path.name in ("scores.json", "calibration.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def plant_trainer_faults(places: Places, name: str, count: int) -> Failed:
    """`count` operations of a command, spread evenly, each fail once."""
    failed, trial = Failed(), Trial(places, COMMANDS[name])
    last = trial.operations
    for nth in sorted({1 + (2 * place + 1) * last // (2 * count) for place in range(count)}):
        trial.fail(min(nth, last), failed)
    return failed
