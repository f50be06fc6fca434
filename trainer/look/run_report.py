"""The figures and scores of a plan in one HTML file, and its held-out studies, those with the worst answers first."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.tables import read_table
from trainer.look.document import RESEARCH_ONLY, Cell, Document, Picture, Table
from trainer.metric import study_losses
from trainer.scores.scores import Score, read_scores

NAME = "report.html"
HEADINGS = {
    "curves": "Vertebra ratios and fractures over z",
    "boxes": "Study boxes",
    "z-range": "Share of its slices that a study's z-range keeps",
    "learning": "Learning curves",
}
"""name of a figure -> its heading; others are headed by their name"""


def write_run_report(out: Path, runs: Path, cache: Cache | None, made: Sequence[str]) -> str:
    """OUT/report.html of figures already in OUT. Returns its name.

    made: the figures' file names, `<name>-<page>.png`. Raises CacheError for a damaged table.
    """
    scores, predictions = runs / "tables/scores.json", runs / "tables/study_predictions.parquet"
    with Document(out / NAME, "Scores and figures of a plan", (), RESEARCH_ONLY) as document:
        if scores.is_file():
            document.tables.append(score_table(read_scores(scores)))
        if predictions.is_file() and cache is not None and cache.labels is not None:
            document.tables.append(worst_first(read_table(predictions), cache.labels))
        for name in made:
            figure, _, number = Path(name).stem.rpartition("-")
            heading = f"{HEADINGS.get(figure, figure)}, page {int(number)}"
            document.add(Picture(Path(name).stem, heading, heading, out / name))
    return NAME


def score_table(scores: Iterable[Score]) -> Table:
    """One row a score. The bounds are of the ratio."""
    columns = (
        "stage",
        "variant",
        "split",
        "studies",
        "metric",
        "value",
        "baseline",
        "its value",
        "ratio",
        "95 % from",
        "to",
    )
    rows = [[_cell(value) for value in score] for score in scores]
    return Table("Scores; ratio: value / its baseline's value", columns, rows)


def worst_first(predictions: pd.DataFrame, labels: pd.DataFrame) -> Table:
    """Held-out studies by their weighted log loss, highest first, with probabilities; fractured levels by the labels.

    predictions: study_predictions (id, fold, patient_overall, C1..C7). labels: id, patient_overall, C1..C7.
    """
    both = predictions.merge(labels[["id", *TARGETS]], on="id", suffixes=("", "_label"))
    truth = both[[f"{target}_label" for target in TARGETS]].astype("Float64").to_numpy(np.float64, na_value=np.nan)
    both["loss"] = study_losses(truth, both[list(TARGETS)].to_numpy(np.float64)) if len(both) else []
    both["fractured"] = [" ".join(np.array(LEVELS)[row == 1]) or "none" for row in truth[:, 1:]]
    both = both.dropna(subset=["loss"]).sort_values(["loss", "id"], ascending=[False, True])
    columns = ("study", "fold", "log loss", "fractured", "any", *LEVELS)
    names = ("id", "fold", "loss", "fractured", *TARGETS)
    rows = [[_cell(row[name]) for name in names] for row in both.to_dict("records")]
    return Table("Held-out studies, worst first", columns, rows, numbers=columns[4:])


def _cell(value: Any) -> Cell:
    if value is None or value is pd.NA:
        return Cell("")
    if isinstance(value, str):
        return Cell(value, value)
    number = float(value)
    return Cell(str(int(number)) if isinstance(value, int | np.integer) else f"{number:.3f}", number)
