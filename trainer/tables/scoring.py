"""Scores of the runs under RUNS from their held-out predictions, without those on studies that a run has learned from."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.tables import read_table
from trainer import exposure
from trainer.identity import PREDICTIONS, run_name
from trainer.tables import lineage, ratios, runs, studies
from trainer.tables.scores import HELD_OUT, Score, score_folds
from trainer.tables.truth import box_truth, ratio_truth

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
    may not be scored is left out whole.
    """
    by_variant: dict[tuple[str, str], list[Path]] = {}
    for run_dir in run_dirs:
        stage, _, variant = run_dir.parent.name.rpartition("-")
        by_variant.setdefault((stage, variant), []).append(run_dir)
    rows, seen, refused, unknown = [], {}, [], []
    folds = cache.labels.set_index("id")["fold"]
    for (stage, variant), own in by_variant.items():
        predictions = [read_table(run_dir / PREDICTIONS) for run_dir in own]
        truth, ids = _truth(stage, cache, pseudo)
        exposures = {
            run_name(run_dir): (exposure.kept(run_dir), set(frame["id"]) & ids)
            for run_dir, frame in zip(own, predictions, strict=True)
        }
        try:
            for found, scored in exposures.values():
                lineage.refuse_exposed(stage, found, scored)
        except lineage.ForbiddenScore as error:
            refused.append(error)
            continue
        predicted = {id for frame in predictions for id in frame["id"].unique()}
        if not set(folds.reindex(sorted(predicted & ids)).dropna()):
            unknown.append(f"{stage} {variant}")
        else:
            rows += _score(stage, variant, cache, predictions, truth)
            seen |= exposures
    return Found(rows, lineage.other_segmentations(seen), refused, unknown)


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


def _truth(stage: str, cache: Cache, pseudo: Path) -> tuple[pd.DataFrame, set[str]]:
    """What the stage's predictions are held against, and the studies it is known of."""
    segmented = cache.index.loc[cache.index["segmentation_digest"].notna(), "id"]
    if stage == "bbox":
        truth = box_truth(map(cache.study, segmented))
    elif stage == "vertebrae":
        truth = ratio_truth(map(cache.study, segmented))
    elif stage == "study_fracture":
        truth = cache.labels[["id", *TARGETS]]
    else:  # trained on pseudo labels from elsewhere where this plan made none
        truth = read_table(pseudo) if pseudo.is_file() else pd.DataFrame(columns=["id"])
    return truth, set(truth["id"])


def _score(stage: str, variant: str, cache: Cache, predictions: list[pd.DataFrame], truth: pd.DataFrame) -> list[Score]:
    folds = cache.labels.set_index("id")["fold"].dropna().astype(int)
    every = set(folds.index)
    splits = {HELD_OUT: every}
    if stage in ("slice_fracture", "study_fracture"):
        splits[HELD_OUT_UNSEGMENTED] = every - set(cache.index.loc[cache.index["segmentation_digest"].notna(), "id"])
    if stage == "vertebrae":
        pooled = ratios.vertebra_ratios(predictions)
    elif stage == "study_fracture":
        pooled = studies.study_predictions(predictions, cache.labels)
    else:
        pooled = runs.mean_over_runs(predictions, ["id", "z_index"])
    return score_folds(stage, pooled, truth, folds, variant=variant, splits=splits)
