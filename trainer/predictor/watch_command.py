"""`trainer predict watch=IN`: its settings, and what is checked before it starts."""

import os
from pathlib import Path
from typing import Any

from cache_schema.errors import UsageError
from trainer.predictor import temporary
from trainer.predictor.job import ANSWERS, Job
from trainer.predictor.scans import require_dicom_results
from trainer.predictor.watch import Watch
from trainer.process.command import one_of, say
from trainer.runs.lease import LeaseTaken, hold_run, holder, lease_file
from trainer.settings.keyvalue import require_known, whole
from trainer.settings.paths import check_folder, is_inside
from trainer.trained.models import COMPUTING, SLICES, check_computing
from trainer.trained.open_models import open_models

FOLDERS = {"watch": "watch=FOLDER", "models": "models=MODELS", "out": "out=DIR"}
SWITCHES = {"report": ("true", "false"), "slices": ("false", "true"), "dicom": ("false", "true")}
"""the first word is the default"""
SECONDS = {"quiet": 60, "every": 10}
MOST_SECONDS = 86400
LEASE = "watch"


def watch(given: dict[str, Any]) -> int:
    """Answers what arrives until the process is ended. given: settings by section, as typed. Raises CspineError."""
    known = (*FOLDERS, *SWITCHES, *SECONDS, *COMPUTING)
    for key in given:
        if key == "source":
            raise UsageError("source= and watch= are both given", expected="one of them", do="see --help")
        require_known(key, known, f"no setting {key} with watch=")
    for key, example in FOLDERS.items():
        if not isinstance(given.get(key) or None, str):
            raise UsageError(f"no {key} given", expected=example, do="see --help")
    folder, models, out = (Path(given.pop(key)) for key in FOLDERS)
    switches = {key: one_of(given, key, choices) == "true" for key, choices in SWITCHES.items()}
    seconds = {key: whole(given.get(key, str(usual)), key, 1, MOST_SECONDS) for key, usual in SECONDS.items()}
    given = {key: value for key, value in given.items() if key not in SWITCHES and key not in SECONDS}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a watch is one process", do="start it without a launcher")
    check_computing(given)
    check_folder(out)
    if not folder.is_dir():
        raise UsageError("no such folder", where=f"watch={folder}", expected="the folder that studies arrive in")
    if is_inside(out, folder):
        raise UsageError(f"is inside watch={folder}", where=f"out={out}", expected="a folder outside it")
    if is_inside(folder, out / ANSWERS):
        raise UsageError("lies among the answers", where=f"watch={folder}", do="choose another out=")
    if switches["dicom"]:
        require_dicom_results(folder)
    trained = open_models(models)
    for line in trained.notes:
        say(line)
    if switches["slices"] and SLICES not in trained.by_stage:
        raise UsageError(f"no finished {SLICES} run", where=f"models={models}", do="leave slices=true out")
    job = Job(trained, out, given, cards=switches["report"], dicom=switches["dicom"])
    job.check()
    job.check_pixels(folder)
    (out / ANSWERS).mkdir(parents=True, exist_ok=True)
    try:
        with hold_run(out, LEASE), temporary.inside(out):
            Watch(folder, job, seconds["quiet"], seconds["every"], switches["slices"]).run()
    except LeaseTaken:
        who = holder(lease_file(out, LEASE)) or "another process"
        raise UsageError(f"another watch writes into it: {who}", where=f"out={out}", do="end it first") from None
    raise AssertionError("a watch ends by a signal")
