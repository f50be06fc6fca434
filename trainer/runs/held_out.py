"""Held-out predictions under RUNS: their runs, and checks of their content. Without torch."""

from pathlib import Path

import pandas as pd

from cache_schema.errors import CacheError, CspineError
from cache_schema.tables import table_meta
from cache_schema.values import misfit
from trainer.runs.file_names import MODEL_FILE, PREDICTIONS
from trainer.runs.run_names import RunName, run_name
from trainer.settings.stage_registry import stage_class, stage_names

HELD_OUT_RUNS = "[!.]*-*/fold[0-9]*-seed*"


def held_out_runs(out: Path) -> list[Path]:
    """Sorted folders of runs with a held-out fold that have weights or predictions, even if these are missing or damaged."""
    found = []
    for run_dir in out.glob(HELD_OUT_RUNS):
        path = run_dir / PREDICTIONS
        try:
            held_out = table_meta(path)["inputs"].get("split", "held_out") == "held_out"
        except CspineError:
            held_out = path.exists() or (run_dir / MODEL_FILE).exists()
        if held_out and RunName.of(run_dir).stage in stage_names():
            found.append(run_dir)
    return sorted(found)


def without_stage(out: Path) -> list[str]:
    """Names of runs with predictions whose stage is not installed."""
    found = (path.parent for path in out.glob(f"{HELD_OUT_RUNS}/{PREDICTIONS}"))
    return sorted(run_name(run_dir) for run_dir in found if RunName.of(run_dir).stage not in stage_names())


def require_predictions(table: pd.DataFrame, stage: str) -> None:
    """Raises CacheError if the table is not a prediction of the stage: a column is missing or holds an invalid value."""
    facts = stage_class(stage)
    keys, values, probabilities = facts.keys(), facts.columns, facts.probabilities
    missing = [name for name in (*keys, *values, *probabilities) if name not in table.columns]
    if missing:
        raise CacheError(f"has no column {missing[0]}", where=Path(PREDICTIONS))
    wrong = misfit(table, keys[1:], least=0, whole=True) or misfit(table, values)
    if wrong := wrong or misfit(table, probabilities, 0.0, 1.0):
        raise CacheError(wrong, where=Path(PREDICTIONS))
