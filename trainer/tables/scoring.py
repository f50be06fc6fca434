"""Scores of the runs under RUNS from their held-out predictions, without those on studies that a run has learned from."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from cache_schema import Cache
from cache_schema.errors import CacheError, CspineError
from cache_schema.tables import read_table
from trainer.leakage import lineage
from trainer.runs.files import PREDICTIONS
from trainer.runs.run_names import RunName, run_name
from trainer.scores.scores import HELD_OUT, MAKE_AGAIN, Score, score_folds
from trainer.settings.registry import stage_class
from trainer.tables.finished import seen_by

if TYPE_CHECKING:
    from trainer.stages.base import Stage

HELD_OUT_UNSEGMENTED = "held_out_unsegmented"
EXPOSED_FILE = "segmentation_exposure.csv"
"""run, study, way: scored studies whose segmentation reached the run through its inputs"""


class Found(NamedTuple):
    rows: list[Score]
    exposed: pd.DataFrame
    refused: list[lineage.ForbiddenScore]
    unknown: list[str]
    """variants whose truth is known of no study that they hold out"""


def score_runs(cache: Cache, run_dirs: tuple[Path, ...], pseudo: Path) -> Found:
    """Every stage and variant that has held-out predictions, seeds averaged, folds together.

    pseudo: the pseudo labels that stage 3 is scored on; where there are none, it is not. A variant with one run that
    may not be scored, or whose predictions lack what is due, is left out whole.
    """
    by_variant: dict[tuple[str, str], list[Path]] = {}
    for run_dir in run_dirs:
        by_variant.setdefault(RunName.of(run_dir)[:2], []).append(run_dir)
    rows, seen, refused, unknown = [], {}, [], []
    folds = cache.labels.set_index("id")["fold"]
    truths: dict[str, pd.DataFrame] = {}
    for (name, variant), own in by_variant.items():
        stage = stage_class(name)
        try:
            truth = truths[name] = truths[name] if name in truths else stage.known(cache, pseudo)
            ids = set(truth["id"])
            predictions = [read_table(run_dir / PREDICTIONS) for run_dir in own]
            exposures = {
                run_name(run_dir): (seen_by(run_dir), set(frame["id"]) & ids)
                for run_dir, frame in zip(own, predictions, strict=True)
            }
            for found, scored in exposures.values():
                lineage.refuse_exposed(stage.learns_from, found, scored)
            predicted = {id for frame in predictions for id in frame["id"].unique()}
            if not set(folds.reindex(sorted(predicted & ids)).dropna()):
                unknown.append(f"{name} {variant}")
                continue
            rows += _score(stage, variant, cache, predictions, truth)
            seen |= exposures
        except lineage.ForbiddenScore as error:
            refused.append(error)
        except CspineError as error:
            line = f"{name} {variant} may not be scored: {error.what}"
            refused.append(lineage.ForbiddenScore(line, where=error.where, do=error.do))
    return Found(rows, lineage.other_segmentations(seen), refused, unknown)


def read_exposed(path: Path) -> pd.DataFrame:
    """Raises CacheError where the file is not what `trainer.tables` wrote."""
    try:
        found = pd.read_csv(path, dtype=str).fillna("")
    except ValueError as error:
        raise CacheError(f"cannot be read ({type(error).__name__})", where=path, do=MAKE_AGAIN) from None
    if list(found.columns) != ["run", "study", "way"]:
        raise CacheError("does not hold the columns run, study and way", where=path, do=MAKE_AGAIN)
    return found


def exposure_report(exposed: pd.DataFrame) -> str:
    """A line for each variant whose scored studies were known by their segmentation to what it was made from."""
    lines = []
    for variant, rows in exposed.groupby(exposed["run"].str.split("/").str[0]):
        known, unsure = rows[rows["study"] != ""], rows[rows["study"] == ""]
        if len(known):
            way = f"{known['way'].iloc[0]}{lineage.ARROW}segmentation of {known['study'].iloc[0]}"
            lines.append(f"{variant}: {known['study'].nunique()} scored studies reached it by segmentation, as {way}")
        lines += [f"{variant}: of unknown lineage: {way}" for way in unsure["way"].unique()]
    return "\n".join(lines)


def _score(
    stage: "type[Stage]", variant: str, cache: Cache, predictions: list[pd.DataFrame], truth: pd.DataFrame
) -> list[Score]:
    folds = cache.labels.set_index("id")["fold"].dropna().astype(int)
    every = set(folds.index)
    splits = {HELD_OUT: every}
    if stage.learns_from != "segmentations":
        splits[HELD_OUT_UNSEGMENTED] = every - set(cache.index.loc[cache.index["segmentation_digest"].notna(), "id"])
    return score_folds(stage, stage.pool(predictions), truth, folds, variant=variant, splits=splits)
