"""Scores of the four stages beside their baselines, with bounds (design 4): rows, scores.json, a table to read."""

import io
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from trainer.tables.parts import (
    Parts,
    PartsOf,
    across_folds,
    bbox_parts,
    slice_fracture_parts,
    study_fracture_parts,
    vertebra_parts,
)

BOOTSTRAPS = 2000
BOUNDS = (2.5, 97.5)
"""percentiles: the 95 % bound"""
HELD_OUT = "held_out"
TABLE_WIDTH = 200
"""more than any table needs, so that no line is broken"""


class Score(NamedTuple):
    """One row of scores.json. ratio = value / baseline_value; low and high bound the ratio, not the value.

    `iou` is better above its baseline, every other metric is a loss and better below. n counts studies.
    """

    stage: str
    variant: str
    split: str
    n: int
    metric: str
    value: float
    baseline: str
    baseline_value: float
    ratio: float
    low: float
    high: float

    @property
    def higher_is_better(self) -> bool:
        return self.metric == "iou"


class Measure(NamedTuple):
    metric: str
    baseline: str
    parts: PartsOf


MEASURES = {
    "bbox": Measure("iou", "training mean box", bbox_parts),
    "vertebrae": Measure("weighted_squared_error", "training curve", vertebra_parts),
    "slice_fracture": Measure("weighted_squared_error", "training constants", slice_fracture_parts),
    "study_fracture": Measure("weighted_log_loss", "training constants", study_fracture_parts),
}


def score(
    stage: str,
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    training: pd.DataFrame,
    *,
    variant: str = "",
    splits: Mapping[str, Collection[str]] | None = None,
) -> list[Score]:
    """One run's scores: `truth` of the held-out fold, `training` the truth of the folds it trained on.

    What the frames hold stands with each stage's function in trainer.tables.parts. splits: name -> ids, one row each;
    all held-out studies where none are named. A split without a study gives no row, and neither does a run that holds
    no known study out.
    """
    if truth.empty or training.empty:
        return []
    return _summaries(stage, variant, MEASURES[stage].parts(predictions, truth, training), splits)


def score_folds(
    stage: str,
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    folds: pd.Series,
    *,
    variant: str = "",
    splits: Mapping[str, Collection[str]] | None = None,
) -> list[Score]:
    """Out-of-fold predictions scored together, each fold beside the baseline of the others. folds: id -> fold."""
    return _summaries(stage, variant, across_folds(MEASURES[stage].parts, predictions, truth, folds), splits)


bbox_scores = partial(score, "bbox")
vertebra_scores = partial(score, "vertebrae")
slice_fracture_scores = partial(score, "slice_fracture")
study_fracture_scores = partial(score, "study_fracture")


def bootstrap(parts: Parts, seed: int = 0) -> tuple[float, float]:
    """95 % bound of value / baseline over studies drawn with replacement; the same seed gives the same bound."""
    n = len(parts.ids)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAPS).astype(np.float64)
    counts = draws @ parts.count
    ratios = _means(draws @ parts.value, counts) / _positive(_means(draws @ parts.baseline, counts))
    low, high = np.nanpercentile(ratios, BOUNDS) if np.isfinite(ratios).any() else (math.nan, math.nan)
    return float(low), float(high)


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """scores.json, written whole and then renamed. A ratio to a baseline of 0 is null."""
    rows = [{key: _finite(value) for key, value in score._asdict().items()} for score in scores]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    beside.replace(path)


def read_scores(path: Path) -> list[Score]:
    rows = json.loads(path.read_text())
    return [Score(**{key: math.nan if value is None else value for key, value in row.items()}) for row in rows]


def render(scores: Iterable[Score]) -> str:
    """A plain text table, one line a score, and a line that says how to read it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "variant", "split"):
        table.add_column(name)
    table.add_column("n", justify="right")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("baseline")
    for name in ("its value", "ratio", "95 % of ratio"):
        table.add_column(name, justify="right")
    for s in scores:
        numbers = (f"{s.baseline_value:.4f}", f"{s.ratio:.3f}", f"{s.low:.3f} - {s.high:.3f}")
        table.add_row(s.stage, s.variant, s.split, str(s.n), s.metric, f"{s.value:.4f}", s.baseline, *numbers)
    text = io.StringIO()
    console = Console(file=text, width=TABLE_WIDTH, color_system=None, force_terminal=False)
    console.print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join([*lines, "iou: better above a ratio of 1; losses and errors: better below. n: held-out studies."])


def _summaries(stage: str, variant: str, parts: Parts, splits: Mapping[str, Collection[str]] | None) -> list[Score]:
    chosen = {HELD_OUT: parts} if splits is None else {name: parts.of(ids) for name, ids in splits.items()}
    return [_summary(stage, variant, name, own) for name, own in chosen.items() if len(own.ids)]


def _summary(stage: str, variant: str, split: str, parts: Parts) -> Score:
    counts = parts.count.sum(0)
    value, baseline = (float(_means(sums.sum(0), counts)) for sums in (parts.value, parts.baseline))
    measure = MEASURES[stage]
    ratio = value / baseline if baseline > 0 else math.nan
    return Score(
        stage,
        variant,
        split,
        len(parts.ids),
        measure.metric,
        value,
        measure.baseline,
        baseline,
        ratio,
        *bootstrap(parts),
    )


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(..., terms) -> (...,): the sum of the terms' means."""
    return (sums / np.maximum(counts, 1)).sum(-1)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
