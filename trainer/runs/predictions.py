"""Held-out predictions under RUNS: where they lie, and what they must hold. No torch."""

from pathlib import Path

import pandas as pd

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import BOX, FRACTURES
from cache_schema.errors import CacheError, CspineError
from cache_schema.tables import table_meta
from cache_schema.values import misfit
from trainer.runs.files import MODEL_FILE, PREDICTIONS

HELD_OUT_RUNS = "[!.]*-*/fold[0-9]*-seed*"
VALUES = {
    "bbox": BOX,
    "vertebrae": ("windows", *LEVELS),
    "slice_fracture": (*LEVELS, *FRACTURES, "any_frac"),
    "study_fracture": (),
}
PROBABILITIES = {"bbox": ("has_box",), "study_fracture": TARGETS}
"""columns of predictions by stage, beside id and the z_index of all but study_fracture"""


def held_out_runs(out: Path) -> list[Path]:
    """Folders of runs that hold a fold out and have weights or predictions, sorted; with those whose predictions are gone,
    cannot be read or do not say what they are."""
    found = []
    for run_dir in out.glob(HELD_OUT_RUNS):
        path = run_dir / PREDICTIONS
        try:
            held_out = table_meta(path)["inputs"].get("split", "held_out") == "held_out"
        except CspineError:
            held_out = path.exists() or (run_dir / MODEL_FILE).exists()
        if held_out and stage_of(run_dir) in VALUES:
            found.append(run_dir)
    return sorted(found)


def stage_of(run_dir: Path) -> str:
    return run_dir.parent.name.rpartition("-")[0]


def require_predictions(table: pd.DataFrame, stage: str) -> None:
    """Raises CacheError where the table is no prediction of the stage: a column that is not there, or no such number."""
    places = () if stage == "study_fracture" else ("z_index",)
    values, probabilities = VALUES[stage], PROBABILITIES.get(stage, ())
    missing = [name for name in ("id", *places, *values, *probabilities) if name not in table.columns]
    if missing:
        raise CacheError(f"has no column {missing[0]}", where=Path(PREDICTIONS))
    wrong = (
        misfit(table, places, least=0, whole=True) or misfit(table, values) or misfit(table, probabilities, 0.0, 1.0)
    )
    if wrong:
        raise CacheError(wrong, where=Path(PREDICTIONS))
