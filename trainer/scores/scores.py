"""Scores of the stages, with baselines and bounds: computing, reading and writing, and text tables."""

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
from trainer.runs.metrics_log import finite
from trainer.scores.score_terms import Parts, PartsOf, across_folds

BOOTSTRAPS = 2000
BOUNDS = (2.5, 97.5)
"""percentiles of the 95 % interval"""
HELD_OUT = "held_out"
NUMBERS = ("value", "baseline_value", "ratio", "low", "high")
MAKE_AGAIN = "make it again: python -m trainer.tables RUNS cache=CACHE"
TABLE_WIDTH = 200
"""characters; wide enough that no line is wrapped"""


class Score(NamedTuple):
    """One row of scores.json. ratio = value / baseline_value; low and high bound the ratio, not the value.

    `iou` is better above its baseline; all other metrics are losses, better below. n: number of studies.
    `<metric>:<target>` is a target's share of the metric (study_fracture), or its own error (slice_fracture).
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
    """the number of leading terms that make up the stage's own score"""
    targets: tuple[str, ...] = ()
    """the targets of the last terms, which get a score each"""


class Scored(Protocol):
    """The part of a stage that scores use."""

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
    """One run's scores. truth: of the held-out fold. training: the truth of the training folds.

    The columns are described at each stage's function in trainer.scores.score_terms. splits: name -> ids, for one row each;
    by default one split of all held-out studies. Splits without a study give no row.
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
    """Scores of out-of-fold predictions together and by target; each fold's baseline is from the others. folds: id -> fold."""
    return _summaries(stage, variant, across_folds(stage.measure.parts, predictions, truth, folds), splits)


def bootstrap(parts: Parts, terms: Iterable[slice] = (slice(None),)) -> list[tuple[float, float]]:
    """For each group of terms the 95 % interval of value / baseline, by a bootstrap over studies with a fixed seed."""
    n = len(parts.ids)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAPS).astype(np.float64)
    value, baseline, counts = draws @ parts.value, draws @ parts.baseline, draws @ parts.count
    bounds: list[tuple[float, float]] = []
    for own in terms:
        ratios = _means(value[:, own], counts[:, own]) / _positive(_means(baseline[:, own], counts[:, own]))
        low, high = np.nanpercentile(ratios, BOUNDS) if np.isfinite(ratios).any() else (math.nan, math.nan)
        bounds.append((float(low), float(high)))
    return bounds


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Writes scores.json atomically. A ratio to a baseline of 0 is null."""
    rows = [finite(score._asdict()) for score in scores]
    write_whole(path, (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())


def read_scores(path: Path) -> list[Score]:
    """Raises CacheError if the file is not as `write_scores` wrote it."""
    try:
        rows = json.loads(path.read_bytes())
        return [Score(**{**row, **{key: _number(row[key]) for key in NUMBERS}}) for row in rows]
    except (ValueError, TypeError, KeyError):
        raise CacheError("cannot be read as scores", where=path, do=MAKE_AGAIN) from None


def render(scores: Iterable[Score]) -> str:
    """A text table of the stages' own scores, one per line, with a legend."""
    rows = []
    for s in (score for score in scores if score.target is None):
        numbers = (f"{s.baseline_value:.4f}", f"{s.ratio:.3f}", f"{s.low:.3f} - {s.high:.3f}")
        rows.append((s.stage, s.variant, s.split, str(s.n), s.metric, f"{s.value:.4f}", s.baseline, *numbers))
    columns = [
        "stage",
        "variant",
        "split",
        ">n",
        "metric",
        ">value",
        "baseline",
        ">its value",
        ">ratio",
        ">95 % of ratio",
    ]
    legend = "iou: better above a ratio of 1; losses and errors: better below. n: held-out studies."
    return "\n".join([*table_lines(columns, rows), legend])


def render_levels(scores: Iterable[Score]) -> str:
    """A text table of ratios by target with 95 % intervals, - if the baseline is 0; "" if there are no scores by target."""
    by_split: dict[tuple[str, ...], list[str]] = {}
    for s in scores:
        if s.target is not None:
            known = not math.isnan(s.ratio)
            by_split.setdefault(s[:3], []).append(f"{s.ratio:.2f} {s.low:.2f}-{s.high:.2f}" if known else "-")
    columns = ("ratio by level", "variant", "split", "overall", *LEVELS)
    return "\n".join(table_lines(columns, ((*key, *cells) for key, cells in by_split.items()))) if by_split else ""


def table_lines(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A text table. Columns whose name starts with `>` are right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=TABLE_WIDTH, color_system=None, force_terminal=False).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def _summaries(stage: Scored, variant: str, parts: Parts, splits: Mapping[str, Collection[str]] | None) -> list[Score]:
    """The stage's own score and those by target, for each split with studies."""
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
    """(..., terms) -> (...): the sum of the terms' means."""
    return (sums / np.maximum(counts, 1)).sum(-1)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
