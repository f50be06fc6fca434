"""`python -m trainer.predict source=SOURCE models=MODELS out=DIR`: fracture probabilities of studies, by trained models.

Study boxes come from the mean of the bbox models with fold=all, or of all bbox models if there are none, as in the reference;
probabilities from the mean of all study_fracture models. Studies need no labels.
"""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema import TARGETS
from cache_schema.errors import UsageError
from cache_schema.layout import LABELS
from cache_schema.store_path import Place
from cache_schema.tables import read_table
from trainer.leakage.lineage import LABEL
from trainer.predictor import temporary
from trainer.predictor.answering import announce, answers_in_time, answers_of
from trainer.predictor.competition import asked_of, submission_of
from trainer.predictor.job import ANSWERS, CARDS, DICOM, RUNS, Job
from trainer.predictor.limit import Limit, seconds_of
from trainer.predictor.results import CSV, REPORT, remove_results, timing_line, write_page, write_tables
from trainer.predictor.scans import Scans, check_source, is_cache, require_dicom_results, source_of
from trainer.process.command import one_of, say, serve
from trainer.process.ending import leave
from trainer.settings.keyvalue import parse_assignments, require_known, whole
from trainer.settings.paths import check_folder, is_inside
from trainer.trained.models import COMPUTING, SLICES, check_computing
from trainer.trained.open_models import open_models

HELP = """usage: trainer predict source=SOURCE models=MODELS out=DIR [report=false] [slices=true] [held_out=true]
           [dicom=true] [keep=true] [timing=true] [limit=TIME] [processes=N] [section.key=value ...]
       trainer predict watch=IN models=MODELS out=DIR [quiet=SECONDS] [every=SECONDS] [report=false] [slices=true] [dicom=true] ...

Writes DIR/predictions.csv: for each study the probability of any fracture (patient_overall) and of one in each of C1..C7;
calibrated ones where the models have a calibration, and flags; and the competition's values in its format, DIR/submission.csv.
Draws an exam card of each study, DIR/cards/<id>.png, and all of them in one page, DIR/report.html.
source=   a folder or a zip of DICOM files, or a cache. Labels are not needed. Of the competition's folder, with test.csv beside
          test_images, it reads test_images, and submission.csv has exactly the rows of test.csv: a study without an answer gets
          the models' prior.
models=   the out= of a plan, or a file made by trainer pack. Averages its study_fracture models, on boxes of its bbox models
          with fold=all or, without those, of all its bbox models. Skips and names stale runs, made from other tables than RUNS
          holds now.
report=false draws no cards and writes no report.html, which saves time.
slices=true also writes DIR/slices.csv, by all slice_fracture models: for each study and level the slice most likely to show a
          fracture.
watch=    instead of source=: a folder that studies arrive in. Answers each study once it has not changed for quiet= seconds
          (60), looks every= seconds (10), and goes on until it is ended. DIR/refused.csv names what it cannot use. `trainer
          healthy DIR` says whether it is at work.
held_out=true answers for the studies of a cache that have a fold, each by the models that hold this fold out.
dicom=true also writes DIR/dicom/<id>: the most suspicious slices with heat maps as secondary captures, and a structured
          report (TID 1500), with the patient's and the study's attributes, for an archive. Needs DICOM files and cspine[dicom].
keep=true keeps the decoded studies in DIR/cache, and each model's own predictions in DIR/runs.
timing=true prints the seconds of each part.
limit=    how long this command may take: 9h, 90m or 3600s. Measures the first studies with all models; where all would take
          longer, leaves models out in the order that they name, for all studies, and says so. DIR keeps the decision. Studies that
          are left when the time is over have no answer. The command started again has the whole time again.
processes= how many processes share the studies; by default one for each GPU.
section.key=value changes how predictions are computed: data.loader=plain (no DALI), data.workers=, train.eval_batch=,
          train.precision=no ... What is not given fits the device and its memory. All other settings are those of the training.
Run the same command to continue after an interruption.
Not a medical device: for research only.
Exit status: 0 done, 1 something is damaged, 2 a wrong setting or nothing to predict on, 3 some studies have no answer."""

FOLDERS = {"source": "source=SOURCE", "models": "models=MODELS", "out": "out=DIR"}
SWITCHES = ("slices", "keep", "timing", "held_out", "dicom")
MOST_SHOWN = 20
CACHE = "cache"
MOST_PROCESSES = 64


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to continue")


def _main(words: list[str]) -> int:
    started = time.monotonic()
    given = parse_assignments(words)
    if "watch" in given:
        from trainer.predictor.watch_command import watch

        return watch(given)
    known = (*FOLDERS, "watch", "report", *SWITCHES, "processes", "limit", *COMPUTING)
    for key in given:
        require_known(key, known, f"no setting {key}")
    for key, example in FOLDERS.items():
        if not isinstance(given.get(key) or None, str):
            raise UsageError(f"no {key} given", expected=example, do="see --help")
    source = source_of(given.pop("source"))
    models, out = (Path(given.pop(key)) for key in ("models", "out"))
    switches = {name: one_of(given, name, ("false", "true")) == "true" for name in SWITCHES}
    switches["report"] = one_of(given, "report", ("true", "false")) == "true"
    processes = whole(given.pop("processes"), "processes", 1, MOST_PROCESSES) if "processes" in given else None
    limit = Limit(seconds_of(str(given.pop("limit"))), time.monotonic, started) if "limit" in given else None
    given = {key: value for key, value in given.items() if key not in switches}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("prediction starts its own processes", do="start it without a launcher; see processes=")
    check_computing(given)
    table, status = predict_studies(source, models, out, given, processes=processes, limit=limit, **switches)
    if len(table):
        _show(out, len(table))
    if switches["report"] and len(table):
        say(f"report: {out / REPORT}")
    return status


def _show(out: Path, count: int) -> None:
    shown = pd.read_csv(out / CSV, dtype={"id": str}, nrows=MOST_SHOWN)[["id", *TARGETS, "flags"]].fillna({"flags": ""})
    say(shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    say(f"{count} studies{f' (the first {MOST_SHOWN} above)' * (count > MOST_SHOWN)}: {out / CSV}")


def predict_studies(
    source: Place,
    models: Path,
    out: Path,
    given: Mapping[str, Any],
    *,
    slices: bool = False,
    keep: bool = False,
    timing: bool = False,
    report: bool = False,
    held_out: bool = False,
    dicom: bool = False,
    processes: int | None = None,
    limit: Limit | None = None,
) -> tuple[pd.DataFrame, int]:
    """Predicts every study in the source. Returns the `study_predictions` table, and 3 if studies were refused or have no
    answer in time, else 0.

    Writes the table, its CSV files and the study boxes to OUT; with slices, the suspected slices, too. given: settings by
    section, which override those of the training. Skips studies that are answered already. Raises CspineError; for wrong
    models and settings before it decodes anything.
    """
    check_folder(out)
    check_source(source)
    cached = is_cache(source)
    if is_inside(out, source) and not cached:
        raise UsageError(f"is inside source={source}", where=f"out={out}", expected="a folder outside the source")
    if held_out and not cached:
        raise _no_folds(source)
    if limit is not None and (held_out or keep):
        other = "held_out=true" if held_out else "keep=true"
        raise UsageError(f"limit= foretells answers to new studies, {other} does more", do="leave one of them out")
    asked = None if cached else asked_of(source)
    _spare_others(source, models, out, keep)
    if dicom:
        require_dicom_results(source)
        if keep:
            raise UsageError("keep=true reads a cache, dicom=true the DICOM files", do="leave one of them out")
    trained = open_models(models, of_folds=held_out)
    for line in trained.notes:
        say(line)
    if slices and SLICES not in trained.by_stage:
        raise UsageError(f"no finished {SLICES} run", where=f"models={models}", do="leave slices=true out")
    job = Job(trained, out, given, keep_runs=keep, cards=report, dicom=dicom)
    job.check()
    job.check_pixels(source)
    (out / ANSWERS).mkdir(parents=True, exist_ok=True)
    remove_results(out)
    images, only = (source, None) if asked is None else (asked.images, asked.ids)
    with temporary.inside(out), Scans(images, out, keep=out / CACHE if keep else None, only=only) as scans:
        jobs = _by_fold(job, scans) if held_out else [(job, scans.ids)]
        announce(jobs)
        if scans.others:
            say(f"test.csv does not list {len(scans.others)} of the studies in {images}: left out")
        timed = time.perf_counter()
        if limit is None:
            answers = answers_of(jobs, scans, processes or _processes())
        else:
            job, answers = answers_in_time(job, scans, processes or _processes(), limit)
        seconds = time.perf_counter() - timed
        refused, labels = scans.refused, None if scans.cache is None else scans.cache.labels
        for each in refused.values():
            say(f"{each.id}: refused: {each.message}", sys.stderr)
        late = [id for _, ids in jobs for id in ids if id not in answers and id not in refused]
        for id in late:
            say(f"{id}: not answered in time", sys.stderr)
        if not answers and asked is None:
            what, expected = "no study can be used", "DICOM files, a zip of them, or a cache of studies"
            raise UsageError("no study was answered in time" if late else what, where=source, expected=expected)
    submission = None if asked is None else submission_of(asked, answers, trained, scans.refused.keys() | set(late))
    job.remove_others(answers)
    table = write_tables(out, list(answers.values()), job, labels, slices=slices, submitted=submission)
    if keep:
        job.runs_tables(answers)
    if report and answers:
        left = [*(f"{each.id}: {each.message}" for each in refused.values()), *(f"{id}: not in time" for id in late)]
        write_page(job, list(answers.values()), left)
    if timing and answers:
        say(timing_line(list(answers.values()), seconds))
    return table, 3 if refused or late or (asked is not None and asked.ids - answers.keys()) else 0


def _by_fold(job: Job, scans: Scans) -> list[tuple[Job, list[str]]]:
    """For each fold the job of the models that hold it out, and its studies. Raises UsageError if the source has no folds."""
    labels = None if scans.cache is None else scans.cache.labels
    if labels is None or labels["fold"].isna().all():
        raise _no_folds(scans.source)
    own = labels[labels["id"].isin(scans.ids) & labels["fold"].notna()]
    jobs = []
    for fold, rows in own.groupby("fold"):
        models = job.models.of_fold(int(fold))
        for model in models.every:
            if seen := model.seen(rows["id"])[LABEL]:
                line = f"{model.name} has seen the label of {min(seen)}, which is in fold {fold}"
                raise UsageError(line, where=scans.source, do="give the cache that it was trained on")
        jobs.append((replace(job, models=models), sorted(rows["id"])))
    return jobs


def _no_folds(source: Place) -> UsageError:
    return UsageError("has no folds", where=source, expected="a cache with labels", do="leave held_out=true out")


def _spare_others(source: Place, models: Path, out: Path, keep: bool) -> None:
    """Raises UsageError if results would replace or remove files that no earlier prediction made."""
    own = [("source", source, out / name) for name in (ANSWERS, CARDS, DICOM)]
    for key, place, folder in [*own, ("models", models, out / RUNS)] if keep else own:
        if is_inside(place, folder):
            raise UsageError(f"lies in {folder}, which holds results", where=f"{key}={place}", do="choose another out=")
    if is_inside(out, models / "tables"):
        raise UsageError("is where the plan keeps its tables", where=f"out={out}", do="choose another out=")
    if keep and (out / CACHE).exists() and not is_cache(source):
        labels = out / CACHE / LABELS
        labelled = labels.is_file() and read_table(labels)[list(TARGETS)].notna().any(axis=None)
        if labelled or not (out / ANSWERS).is_dir():
            raise UsageError("was not made by an earlier prediction", where=out / CACHE, do="choose another out=")


def _processes() -> int:
    """One for each GPU; one on a CPU."""
    import torch

    from trainer.session import on_gpu

    return max(1, torch.cuda.device_count()) if on_gpu() else 1


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
