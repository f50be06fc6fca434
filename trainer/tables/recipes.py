"""What each table is made from, and how: its inputs, its content and its exposure. A stage names its tables with their recipes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.tables import read_table, table_meta
from trainer.leakage import lineage
from trainer.leakage.groups import Exposure
from trainer.runs.file_names import PREDICTIONS
from trainer.runs.inputs import labels_of
from trainer.runs.run_names import run_name
from trainer.runs.sources import digest_rows
from trainer.settings.stage_registry import stage_class, stage_names
from trainer.tables import boxes, pseudo, ratios, studies
from trainer.tables.finished import exposure_digest, seen_by
from trainer.tables.parts import made_by_part, predicted_ids
from trainer.tables.settings import TableSettings

VERSION = "2"
"""of this project's tables; to be raised when one is computed differently from the same inputs"""


@dataclass(frozen=True)
class Sources:
    """RUNS, the cache, the folders of the pooled runs, and the thresholds."""

    out: Path
    cache: Cache
    run_dirs: tuple[Path, ...]
    settings: TableSettings

    def path(self, name: str) -> Path:
        return self.out / "tables" / f"{name}.parquet"

    def predictions(self) -> list[pd.DataFrame]:
        """All at once; a table with a row for each slice is rather made by `by_part`."""
        return [read_table(run_dir / PREDICTIONS) for run_dir in self.run_dirs]

    def by_part(self, make: Callable[[list[pd.DataFrame]], pd.DataFrame], keys: list[str]) -> pd.DataFrame:
        """A table of all runs, sorted by its keys, with the predictions of one part of the runs in memory at a time.

        make: predictions of runs -> their table, in which a study's rows come from its own predictions alone.
        """
        return made_by_part(self.run_dirs, make, keys)

    def run_digests(self) -> dict[str, str]:
        """Digests of each run's predictions and exposure."""
        seen = {f"{run_name(run_dir)} exposure": exposure_digest(run_dir) for run_dir in self.run_dirs}
        return self.prediction_digests() | seen

    def prediction_digests(self) -> dict[str, str]:
        return {run_name(run_dir): table_meta(run_dir / PREDICTIONS)["digest"] for run_dir in self.run_dirs}

    def thresholds(self, name: str) -> dict[str, str]:
        own = self.settings.of(name)
        return {"settings": json.dumps(own, sort_keys=True)} if own else {}


def _exposure_of_runs(name: str, sources: Sources) -> Exposure:
    return lineage.of_predictions(name, [(seen_by(run_dir), predicted_ids(run_dir)) for run_dir in sources.run_dirs])


class Recipe(NamedTuple):
    """How a table is made from the pooled runs of its stage, or from an earlier table of it."""

    frame: Callable[[Sources], pd.DataFrame]
    inputs: Callable[[Sources], dict[str, str]] = Sources.run_digests
    """name -> digest of what the table is made from"""
    exposure: Callable[[str, Sources], Exposure] = _exposure_of_runs
    version: str = VERSION
    """another package's own; to be raised as VERSION is"""

    def inputs_without_exposure(self, sources: Sources) -> dict[str, str]:
        """The part of `inputs` that is known even if a run's exposure is not."""
        return sources.prediction_digests() if self.inputs is Sources.run_digests else self.inputs(sources)


def recipe_of(table: str) -> Recipe:
    return next(stage.tables[table] for stage in map(stage_class, stage_names()) if table in stage.tables)


def made_by(table: str) -> str:
    """The `made_by` of a table that is up to date."""
    return f"{table} {recipe_of(table).version}"


def inputs_of(table: str, sources: Sources) -> dict[str, str]:
    """The `inputs` of a table."""
    return recipe_of(table).inputs(sources) | sources.thresholds(table)


def labels_digest(cache: Cache) -> str:
    labels = labels_of(cache)[["id", *TARGETS]].astype({target: "Int64" for target in TARGETS})
    return digest_rows(labels.itertuples(index=False))


def _pseudo_inputs(sources: Sources) -> dict[str, str]:
    path = sources.path("vertebra_ratios")
    return {
        "vertebra_ratios": table_meta(path)["digest"],
        "vertebra_ratios exposure": table_meta(lineage.table_file(path))["digest"],
        "labels": labels_digest(sources.cache),
    }


def _pseudo_exposure(name: str, sources: Sources) -> Exposure:
    path = sources.path("vertebra_ratios")
    rows = set(read_table(path, ["id"])["id"].unique())
    seen = lineage.kept_for_table(path)
    through = [] if seen is None else [lineage.into_rows(name, seen, rows)]
    return lineage.merged([lineage.own_labels(name, rows), *through])


def _study_boxes(sources: Sources) -> pd.DataFrame:
    known = sources.cache.index[["id", "rows", "columns", "slices"]]

    def boxes_of(predictions: list[pd.DataFrame]) -> pd.DataFrame:
        predicted = {id for frame in predictions for id in frame["id"].unique()}
        return boxes.study_boxes(predictions, known[known["id"].isin(predicted)], **dict(sources.settings))

    return sources.by_part(boxes_of, ["id"])


def _vertebra_ratios(sources: Sources) -> pd.DataFrame:
    return sources.by_part(ratios.vertebra_ratios, ["id", "z_index"])


def _pseudo_labels(sources: Sources) -> pd.DataFrame:
    return pseudo.pseudo_labels(read_table(sources.path("vertebra_ratios")), labels_of(sources.cache))


def _study_predictions(sources: Sources) -> pd.DataFrame:
    labels = labels_of(sources.cache)
    return sources.by_part(lambda predictions: studies.study_predictions(predictions, labels), ["id"])


OF_BBOX = {"study_boxes": Recipe(_study_boxes)}
OF_VERTEBRAE = {
    "vertebra_ratios": Recipe(_vertebra_ratios),
    "pseudo_labels": Recipe(_pseudo_labels, _pseudo_inputs, _pseudo_exposure),
}
OF_STUDY_FRACTURE = {"study_predictions": Recipe(_study_predictions)}
"""the tables of this project's stages"""
