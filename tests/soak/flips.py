"""One flipped bit at a time in what a plan has made: it is named or made again, and no table changes in silence."""

import contextlib
import io
import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache_schema import Cache
from cache_schema.errors import CspineError
from trainer.plan.graph import Plan, read_plan
from trainer.plan.keys import states
from trainer.process.command import warn_once
from trainer.run import run
from trainer.settings.layers import load
from trainer.tables import make
from trainer.tables.__main__ import main as tables

SETTINGS = """
model: {name: test_efficientnet_gn, pretrained: false, chunk: 8}
data: {size: 64, frames: 12, stride: 6, eval_stride: 8, loader: plain}
train: {epochs: 1, batch: 4, micro_batch: 2, eval_batch: 3, evaluate_every: 0, threads: 1, log_every: 1}
deterministic: true
stages:
  bbox: {train: {batch: 16, micro_batch: 8, epochs: 2}}
  study_fracture: {train: {batch: 1, micro_batch: 1}, data: {bank: 1}}
"""
BANK = "bank"
ALL_STAGES = ("bbox", "vertebrae", "slice_fracture", "study_fracture")
NOT_READ = ("logs", "tracker", ".leases", "metrics.jsonl", "submission.csv")
"""parts of paths below RUNS that decide nothing"""


@dataclass(frozen=True)
class Made:
    """Everything of a plan, made in this process."""

    plan: Plan
    cache: Path
    out: Path

    def files(self) -> list[Path]:
        """All below RUNS, relative to it."""
        return sorted(path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.out / "tables").iterdir())}

    def make(self) -> None:
        """What is not there, or not as it was made. Raises CspineError."""
        cache = Cache(self.cache)
        states(self.plan, cache)
        for node in self.plan.nodes:
            if node.is_run:
                run(load(node.words))
            else:
                runs = [self.plan[name].output for name in node.needs if self.plan[name].is_run]
                make.make(node.name, self.out, cache, runs, self.plan.tables)


@dataclass
class Flipped:
    flips: int = 0
    unnamed: list[str] = field(default_factory=list)
    """files that something reads back, and that were neither named nor made again"""
    silent: list[str] = field(default_factory=list)
    """files after whose flip a table was another, without a word or for good"""
    broken: list[str] = field(default_factory=list)
    """files after whose flip a command ended with an exception, or could not make everything again"""

    @property
    def wrong(self) -> list[str]:
        return [*self.unnamed, *self.silent, *self.broken]


def make_plan(folder: Path, cache: Path, stages: Sequence[str] = ALL_STAGES) -> Made:
    """A small plan of two folds, made by `deterministic=true`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(SETTINGS)
    rows = "".join(f"  - {{stage: {stage}, folds: [0, 1]}}\n" for stage in stages)
    (folder / "plan.yaml").write_text(f"config: settings.yaml\ntables: {{presence: 0.05}}\nruns:\n{rows}")
    made = Made(read_plan(folder / "plan.yaml", cache, folder / "runs"), cache, folder / "runs")
    _quietly(made.make)
    return made


def flip_everything(made: Made, flips: int, seed: int = 0) -> Flipped:
    """Flips in files drawn from all below RUNS."""
    chance = random.Random(seed)
    return flip(made, [chance.choice(made.files()) for _ in range(flips)], seed)


def flip(made: Made, files: Iterable[Path], seed: int = 0) -> Flipped:
    """One random bit in each of these files in turn, from the state that the plan left; which stands there again at the end."""
    chance, done, before = random.Random(seed), Flipped(), made.tables()
    whole = made.out.with_name("whole")
    made.out.rename(whole)
    try:
        for file in files:
            shutil.rmtree(made.out, ignore_errors=True)
            shutil.copytree(whole, made.out)
            if (made.out / file).stat().st_size:
                _flip(made.out / file, chance)
                _judge(made, file, before, done)
    finally:
        shutil.rmtree(made.out, ignore_errors=True)
        whole.rename(made.out)
    return done


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _judge(made: Made, file: Path, before: dict[str, bytes], done: Flipped) -> None:
    done.flips += 1
    path, name = made.out / file, file.as_posix()
    flipped, is_read = path.read_bytes(), not any(part in NOT_READ for part in file.parts)
    warn_once.cache_clear()  # a process of its own would say it again
    try:
        status, said = _quietly(lambda: tables([str(made.out), f"cache={made.cache}"]))
        others = {table: data for table, data in made.tables().items() if table != file.name}
        if any(before.get(table) != data for table, data in others.items()) and not status:
            done.silent.append(f"{name}: a table is another after trainer.tables")
        if file.parts[0] == BANK:  # read where something is trained on it
            for stage4 in made.out.glob("study_fracture-*"):
                shutil.rmtree(stage4)
        said += _quietly(made.make)[1]
    except Exception as error:
        kind = "" if isinstance(error, CspineError) else f"{type(error).__name__}: "
        done.broken.append(f"{name}: {kind}{error}")
        return
    if made.tables() != before:
        done.silent.append(f"{name}: a table is another after all was made again")
    made_again = not path.is_file() or path.read_bytes() != flipped
    if is_read and not made_again and name not in said:
        done.unnamed.append(f"{name}: neither named nor made again")


def _quietly(act) -> tuple[object, str]:
    """(what it returns, what it said)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = act()
    return found, said.getvalue()
