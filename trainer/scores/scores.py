"""Scores of the stages beside their baselines, with bounds: rows, scores.json, a table to read."""

import io
import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from cache_schema import LEVELS
from cache_schema.documents import write_whole
from cache_schema.errors import CacheError
from trainer.scores.score_terms import Parts, PartsOf, across_folds

BOOTSTRAPS = 2000
BOUNDS = (2.5, 97.5)
"""percentiles: the 95 % bound"""
HELD_OUT = "held_out"
NUMBERS = ("value", "baseline_value", "ratio", "low", "high")
MAKE_AGAIN = "make it again: python -m trainer.tables RUNS cache=CACHE"
TABLE_WIDTH = 200
"""more than any table needs, so that no line is broken"""


class Score(NamedTuple):
    """One row of scores.json. ratio = value / baseline_value; low and high bound the ratio, not the value.

    `iou` is better above its baseline, every other metric is a loss and better below. n counts studies.
    `<metric>:<target>` is what one target adds to the metric (study_fracture), or has of its own (slice_fracture).
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

    @property
    def target(self) -> str | None:
        """patient_overall, any or C1..C7; None for the stage's own score."""
        return self.metric.partition(":")[2] or None


class Measure(NamedTuple):
    metric: str
    baseline: str
    parts: PartsOf
    terms: int = 1
    """how many of the parts' first terms make up the stage's own score"""
    targets: tuple[str, ...] = ()
    """of the last terms, a score each"""


class Scored(Protocol):
    """What scores know of a stage."""

    name: str
    measure: Measure


def score(
    stage: Scored,
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    training: pd.DataFrame,
    *,
    variant: str = "",
    splits: Mapping[str, Collection[str]] | None = None,
) -> list[Score]:
    """One run's scores: `truth` of the held-out fold, `training` the truth of the folds it trained on.

    What the frames hold stands with each stage's function in trainer.scores.score_terms. splits: name -> ids, one row each;
    all held-out studies where none are named. A split without a study gives no row, and neither does a run that holds
    no known study out.
    """
    if truth.empty or training.empty:
        return []
    rows = _summaries(stage, variant, stage.measure.parts(predictions, truth, training), splits)
    return [row for row in rows if row.target is None]


def score_folds(
    stage: Scored,
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    folds: pd.Series,
    *,
    variant: str = "",
    splits: Mapping[str, Collection[str]] | None = None,
) -> list[Score]:
    """Out-of-fold predictions scored together and by target, each fold beside the baseline of the others. folds: id -> fold."""
    return _summaries(stage, variant, across_folds(stage.measure.parts, predictions, truth, folds), splits)


def bootstrap(parts: Parts, terms: Iterable[slice] = (slice(None),)) -> list[tuple[float, float]]:
    """For each group of terms the 95 % bound of value / baseline over studies drawn with replacement; always the same."""
    n = len(parts.ids)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAPS).astype(np.float64)
    value, baseline, counts = draws @ parts.value, draws @ parts.baseline, draws @ parts.count
    bounds = []
    for own in terms:
        ratios = _means(value[:, own], counts[:, own]) / _positive(_means(baseline[:, own], counts[:, own]))
        known = np.isfinite(ratios).any()
        bounds.append(tuple(map(float, np.nanpercentile(ratios, BOUNDS))) if known else (math.nan, math.nan))
    return bounds


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """scores.json, whole or not at all. A ratio to a baseline of 0 is null."""
    rows = [{key: _finite(value) for key, value in score._asdict().items()} for score in scores]
    write_whole(path, (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())


def read_scores(path: Path) -> list[Score]:
    """Raises CacheError where the file is not what `write_scores` wrote."""
    try:
        rows = [Score(**row) for row in json.loads(path.read_bytes())]
        return [row._replace(**{key: _number(getattr(row, key)) for key in NUMBERS}) for row in rows]
    except (ValueError, TypeError):
        raise CacheError("cannot be read as scores", where=path, do=MAKE_AGAIN) from None


def render(scores: Iterable[Score]) -> str:
    """A plain text table of the stages' own scores, one line each, and a line that says how to read it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "variant", "split"):
        table.add_column(name)
    table.add_column("n", justify="right")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("baseline")
    for name in ("its value", "ratio", "95 % of ratio"):
        table.add_column(name, justify="right")
    for s in (score for score in scores if score.target is None):
        numbers = (f"{s.baseline_value:.4f}", f"{s.ratio:.3f}", f"{s.low:.3f} - {s.high:.3f}")
        table.add_row(s.stage, s.variant, s.split, str(s.n), s.metric, f"{s.value:.4f}", s.baseline, *numbers)
    return "\n".join(
        [*_lines(table), "iou: better above a ratio of 1; losses and errors: better below. n: held-out studies."]
    )


def render_levels(scores: Iterable[Score]) -> str:
    """Ratio to the training constants by target, with its 95 % bound, - where these are exact; "" where no score is by target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("ratio by level", "variant", "split", "overall", *LEVELS):
        table.add_column(name)
    by_split: dict[tuple[str, ...], list[str]] = {}
    for s in scores:
        if s.target is not None:
            known = not math.isnan(s.ratio)
            by_split.setdefault(s[:3], []).append(f"{s.ratio:.2f} {s.low:.2f}-{s.high:.2f}" if known else "-")
    for key, cells in by_split.items():
        table.add_row(*key, *cells)
    return "\n".join(_lines(table)) if by_split else ""


def _lines(table: Table) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=TABLE_WIDTH, color_system=None, force_terminal=False).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def _summaries(stage: Scored, variant: str, parts: Parts, splits: Mapping[str, Collection[str]] | None) -> list[Score]:
    """The stage's own score and those by target, for each split that has a study."""
    chosen = {HELD_OUT: parts} if splits is None else {name: parts.of(ids) for name, ids in splits.items()}
    return [row for name, own in chosen.items() if len(own.ids) for row in _summary(stage, variant, name, own)]


def _summary(stage: Scored, variant: str, split: str, parts: Parts) -> list[Score]:
    measure = stage.measure
    terms, columns = len(measure.targets), parts.value.shape[1]
    groups = {measure.metric: slice(0, measure.terms)}
    groups |= {
        f"{measure.metric}:{name}": slice(columns - terms + i, columns - terms + i + 1)
        for i, name in enumerate(measure.targets)
    }
    counts, rows = parts.count.sum(0), []
    for (metric, own), bounds in zip(groups.items(), bootstrap(parts, groups.values()), strict=True):
        value, baseline = (float(_means(sums.sum(0)[own], counts[own])) for sums in (parts.value, parts.baseline))
        ratio = value / baseline if baseline > 0 else math.nan
        rows.append(
            Score(stage.name, variant, split, len(parts.ids), metric, value, measure.baseline, baseline, ratio, *bounds)
        )
    return rows


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(..., terms) -> (...,): the sum of the terms' means."""
    return (sums / np.maximum(counts, 1)).sum(-1)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
