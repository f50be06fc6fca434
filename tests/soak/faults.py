"""Commands of `preprocess` of which the n-th file operation fails: one line, an exit status, and the next run mends it."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree, rmtree

import pandas as pd
from planting import REASONS, planted, site_of
from tiny_rsna import IDS, files_of

from cache_schema.tables import write_table
from preprocess.cli import run

STATUSES = (0, 1, 2, 3)
NAMED = r"(?!(train\.csv|train_images|segmentations)[:; \n])"
"""the layout's own names say nothing about a patient"""


@dataclass(frozen=True)
class Command:
    """words: with {source}, {cache}, {new} and others of `Places`. changes: what it writes, compared after a second run."""

    words: str
    changes: str | None = None

    @property
    def name(self) -> str:
        return self.words.split()[0]


COMMANDS = {
    "verify": Command("verify {cache}"),
    "inspect": Command("inspect {cache}"),
    "inspect a study": Command(f"inspect {{cache}} {IDS[0]} --png {{new}}.png"),
    "labels": Command("labels {cache} {labels} --folds {labels}", "cache"),
    "set-boxes": Command("set-boxes {cache} {boxes}", "cache"),
    "crop": Command("crop {cache} {new} --boxes {boxes}", "new"),
    "crop again": Command("crop {cache} {cropped} --boxes {boxes} --margin 3", "cropped"),
    "phantom": Command("phantom {new} --studies 1 --slices 8 --segmented 1 --workers 1 --syntax explicit", "new"),
    "build-cache": Command("build-cache {source} {new} --folds {labels}", "new"),
    "build-cache again": Command("build-cache {more} {cache}", "cache"),
}
BUILDS = ("build-cache", "build-cache again")
WITHOUT_WORKERS = tuple(name for name in COMMANDS if name not in BUILDS)


@dataclass
class Failed:
    """tried: failures that were met. wrong: what was seen that must not be, each with the command and its failure."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Places:
    """The paths that commands are given. source: four studies; more: the same, one of them with another slice."""

    folder: Path
    source: Path
    more: Path
    whole: Path
    cropped_whole: Path

    @classmethod
    def make(cls, folder: Path, source: Path, whole: Path) -> "Places":
        """whole: a cache of `source`, with two folds; nothing is written there."""
        folder.mkdir(parents=True)
        places = cls(folder, source, folder / "more", whole, folder / "cropped-whole")
        places.write_inputs()
        return places

    def write_inputs(self) -> None:
        copytree(self.source, self.more)
        changed = self.more / "train_images" / IDS[2] / "4.dcm"
        changed.write_bytes(changed.read_bytes().replace(b"SECRET^NAME", b"OTHERS^NAME"))
        os.utime(changed, ns=(1, 1))
        table = pd.read_csv(self.source / "train.csv").assign(patient_overall=1, C7=1, fold=[1, 0, 1, 0])
        table.to_csv(self.folder / "labels.csv", index=False)
        boxes = {"id": IDS, "x0": 4, "y0": 3, "x1": 17, "y1": 15, "z_from": 1, "z_to": 9}
        write_table(self.folder / "boxes.parquet", pd.DataFrame(boxes), "a test", {})
        crop = ["crop", str(self.whole), str(self.cropped_whole), "--boxes", str(self.folder / "boxes.parquet")]
        if quietly(crop)[0]:
            raise AssertionError("the sound crop failed")

    def fresh(self) -> dict[str, Path]:
        """Everything as before the first command; the source is never written to."""
        made = {name: self.folder / "made" / name for name in ("cache", "cropped", "new")}
        rmtree(self.folder / "made", ignore_errors=True)
        copytree(self.whole, made["cache"])
        copytree(self.cropped_whole, made["cropped"])
        given = {"labels": self.folder / "labels.csv", "boxes": self.folder / "boxes.parquet"}
        return made | given | {"source": self.source, "more": self.more}


def quietly(words: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run(words)
    return status, out.getvalue(), err.getvalue()


class Trial:
    """One command, whose undisturbed outcome is known."""

    def __init__(self, places: Places, command: Command, extra: tuple[str, ...] = ()):
        self.places, self.command, self.extra = places, command, extra
        paths = places.fresh()
        with planted(self.given(paths), 0) as counting:
            self.status, _, err = quietly(self.words(paths))
        if self.status not in (0, 3):
            raise AssertionError(f"{command.words} undisturbed: {err}")
        self.operations, self.outcome = counting.seen, self.files(paths)

    def words(self, paths: dict[str, Path]) -> list[str]:
        return [*self.command.words.format(**paths).split(), *self.extra]

    def given(self, paths: dict[str, Path]) -> list[Path]:
        """The paths of the call, and what is made beside them."""
        words = " ".join(self.words(paths))
        return [path for path in paths.values() if str(path) in words] + [paths["new"].with_name("new.partial")]

    def files(self, paths: dict[str, Path]) -> dict[str, str] | None:
        return files_of(paths[self.command.changes]) if self.command.changes else None

    def fail_here(self, nth: int, failed: Failed) -> None:
        """In this process. Workers of a scheduler are left as they are."""
        reason, paths = REASONS[nth % len(REASONS)], self.places.fresh()
        with planted(self.given(paths), nth, reason) as plant:
            try:
                status, out, err = quietly(self.words(paths))
            except BaseException as error:
                status, out, err = -1, "", f"Traceback: {error!r}"
        if plant.seen >= nth:
            self.judge(nth, reason, (status, out, err), paths, failed)

    def fail_everywhere(self, nth: int, failed: Failed) -> None:
        """In a process of its own and in each of its workers."""
        reason, paths = REASONS[nth % len(REASONS)], self.places.fresh()
        environment = site_of(self.places.folder, self.given(paths), nth, reason)
        command = [sys.executable, "-m", "preprocess", *self.words(paths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        self.judge(nth, reason, (done.returncode, done.stdout, done.stderr), paths, failed)

    def judge(self, nth: int, reason: int, seen: tuple[int, str, str], paths: dict[str, Path], failed: Failed) -> None:
        failed.tried += 1
        what = f"{self.command.words}: {os.strerror(reason)} at operation {nth}"
        failed.wrong += [f"{what}: {fault}" for fault in faults_of(seen, (paths["source"], paths["more"]))]
        if self.command.changes is None or (seen[0] == 0 and self.files(paths) == self.outcome):
            return
        status, _, err = quietly(self.words(paths))
        if status != self.status or self.files(paths) != self.outcome:
            failed.wrong.append(f"{what}: the next run ended otherwise than an undisturbed one ({status}): {err}")


def faults_of(seen: tuple[int, str, str], sources: tuple[Path, ...]) -> list[str]:
    """What must not be in what a command said and how it ended."""
    status, out, err = seen
    shown, lines = out + err, [line for line in err.splitlines() if line.startswith("error:")]
    rules: list[tuple[bool, str]] = [
        (status in STATUSES, f"exit status {status}"),
        ("Traceback" not in shown, "a traceback"),
        (len(lines) <= 1, "several errors"),
        (status != 2 or bool(lines) or " 0 new, " in out, "ended with 2 and said nothing"),
        (not any(re.search(re.escape(f"{source}{os.sep}") + NAMED, shown) for source in sources), "a path of SOURCE"),
    ]
    return [f"{words}: {shown.strip()[-1500:]}" for well, words in rules if not well]


def plant_faults(places: Places, name: str, scheduler: str, launched: list[int]) -> Failed:
    """Every operation of a command fails once, here; those `launched` also in a build's own processes."""
    failed = Failed()
    trial = Trial(places, COMMANDS[name], ("--scheduler", scheduler) if name in BUILDS else ())
    for nth in range(1, trial.operations + 1):
        trial.fail_here(nth, failed)
    own = Trial(places, COMMANDS[name], ("--workers", "2")) if launched else trial
    for nth in launched:
        own.fail_everywhere(nth, failed)
    return failed
