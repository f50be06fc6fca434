"""Scores of the runs under RUNS from their held-out predictions; runs that have seen the truth are refused."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import Cache
from cache_schema.errors import CacheError, CspineError
from trainer.leakage import lineage
from trainer.leakage.groups import ARROW, Exposure
from trainer.runs.inputs import labels_of
from trainer.runs.run_names import RunName, run_name
from trainer.scores.scores import HELD_OUT, MAKE_AGAIN, Score, score_folds
from trainer.settings.stage_registry import stage_class
from trainer.tables.finished import seen_by
from trainer.tables.parts import made_by_part, predicted_ids

HELD_OUT_UNSEGMENTED = "held_out_unsegmented"
EXPOSED_FILE = "segmentation_exposure.csv"
"""columns run, study, way: scored studies whose segmentation the run has seen through its inputs"""


class Found(NamedTuple):
    rows: list[Score]
    exposed: pd.DataFrame
    refused: list[lineage.ForbiddenScore]
    unknown: list[str]
    """variants without any held-out study of known truth"""


def score_runs(cache: Cache, run_dirs: tuple[Path, ...], pseudo: Path) -> Found:
    """The scores of all stages and variants with held-out predictions; seeds are averaged, folds scored together.

    pseudo: the pseudo labels for stage 3, which is not scored without them. A variant is refused if one of its runs may not
    be scored or lacks predictions.
    """
    by_variant: dict[tuple[str, str], list[Path]] = {}
    for run_dir in run_dirs:
        by_variant.setdefault(RunName.of(run_dir)[:2], []).append(run_dir)
    found = Found([], lineage.other_segmentations({}), [], [])
    seen: dict[str, tuple[Exposure, frozenset[str]]] = {}
    folds = labels_of(cache).set_index("id")["fold"].dropna().astype(int)
    truths: dict[str, pd.DataFrame] = {}
    for (name, variant), own in by_variant.items():
        stage = stage_class(name)
        try:
            if name not in truths:
                truths[name] = stage.known(cache, pseudo)
            ids = set(truths[name]["id"])
            predicted = {run_dir: predicted_ids(run_dir) for run_dir in own}
            exposures = {run_name(run): (seen_by(run), held_out & ids) for run, held_out in predicted.items()}
            for exposure, scored in exposures.values():
                lineage.refuse_exposed(stage.learns_from, exposure, scored)
            if not frozenset().union(*predicted.values()) & ids & set(folds.index):
                found.unknown.append(f"{name} {variant}")
                continue
            splits = {HELD_OUT: set(folds.index)}
            if stage.learns_from != "segmentations":
                segmented = cache.index.loc[cache.index["segmentation_digest"].notna(), "id"]
                splits[HELD_OUT_UNSEGMENTED] = splits[HELD_OUT] - set(segmented)
            pooled = made_by_part(own, stage.pool, list(stage.keys()))
            found.rows.extend(score_folds(stage, pooled, truths[name], folds, variant=variant, splits=splits))
            seen |= exposures
        except lineage.ForbiddenScore as error:
            found.refused.append(error)
        except CspineError as error:
            line = f"{name} {variant} may not be scored: {error.what}"
            found.refused.append(lineage.ForbiddenScore(line, where=error.where, do=error.do))
    return found._replace(exposed=lineage.other_segmentations(seen))


def read_exposed(path: Path) -> pd.DataFrame:
    """Raises CacheError if the file is not as trainer.tables wrote it."""
    try:
        found = pd.read_csv(path, dtype=str).fillna("")
    except ValueError as error:
        raise CacheError(f"cannot be read ({type(error).__name__})", where=path, do=MAKE_AGAIN) from None
    if list(found.columns) != ["run", "study", "way"]:
        raise CacheError("does not hold the columns run, study and way", where=path, do=MAKE_AGAIN)
    return found


def exposure_report(exposed: pd.DataFrame) -> str:
    """A line for each variant whose inputs have seen the segmentation of scored studies, or are of unknown exposure."""
    lines = []
    for variant, rows in exposed.groupby(exposed["run"].str.split("/").str[0]):
        known, unsure = rows[rows["study"] != ""], rows[rows["study"] == ""]
        if len(known):
            way = f"{known['way'].iloc[0]}{ARROW}segmentation of {known['study'].iloc[0]}"
            lines.append(
                f"{variant}: its inputs have seen the segmentation of {known['study'].nunique()} scored studies, as {way}"
            )
        lines += [f"{variant}: of unknown exposure: {way}" for way in unsure["way"].unique()]
    return "\n".join(lines)
