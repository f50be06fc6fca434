"""study_predictions x labels -> calibration.json."""

import pandas as pd

from cache_schema import TARGETS
from cache_schema.errors import CacheError
from cache_schema.tables import read_table, table_meta
from trainer.leakage import lineage
from trainer.process.command import warn_once
from trainer.runs.inputs import labels_of
from trainer.scores.calibration import Calibration, calibrate
from trainer.tables.recipes import Sources, labels_digest
from trainer.tables.scoring import score_runs

FILE = "calibration.json"
VERSION = "calibration 1"
"""to be raised when it is computed differently from the same inputs"""


def make_calibration(sources: Sources) -> bool:
    """Writes calibration.json after study_predictions, unless it is up to date. Returns whether it was written.

    Where nothing was held out, or the scores of the runs are refused, it says why in one line, and removes the file: what
    stands there is of other predictions or labels.
    """
    path, table = sources.path("study_predictions").with_name(FILE), sources.path("study_predictions")
    inputs = {
        "study_predictions": table_meta(table)["digest"],
        "study_predictions exposure": table_meta(lineage.table_file(table))["digest"],
        "labels": labels_digest(sources.cache),
    }
    if path.is_file():
        try:
            found = Calibration.read(path)
            if found.made_by == VERSION and found.inputs == inputs:
                return False
        except CacheError as error:
            warn_once(f"{error.where}: {error.what}: {FILE} is made again")
    predictions, labels = read_table(table), labels_of(sources.cache)
    if why := _refused(sources, predictions, labels):
        print(f"{FILE}: not made: {why}", flush=True)
        path.unlink(missing_ok=True)
        return False
    calibrate(predictions, labels, VERSION, inputs).write(path)
    return True


def _refused(sources: Sources, predictions: pd.DataFrame, labels: pd.DataFrame) -> str:
    """Why these predictions cannot be compared with their labels; "" if they can."""
    labelled = labels.loc[labels[list(TARGETS)].notna().any(axis=1), "id"]
    if not predictions.loc[predictions["fold"].notna(), "id"].isin(labelled).any():
        return "no study with labels was held out"
    refused = score_runs(sources.cache, sources.run_dirs, sources.path("pseudo_labels")).refused
    return str(refused[0]) if refused else ""
