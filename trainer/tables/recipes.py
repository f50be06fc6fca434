"""What each table is made from, and how: its inputs, its content and its exposure."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.tables import content_digest, read_table, table_meta
from trainer.leakage import lineage
from trainer.runs.files import PREDICTIONS
from trainer.runs.inputs import labels_of
from trainer.runs.run_names import run_name
from trainer.runs.sources import digest_rows
from trainer.tables import boxes, pseudo, ratios, studies
from trainer.tables.finished import seen_by
from trainer.tables.settings import TableSettings


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
        return [read_table(run_dir / PREDICTIONS) for run_dir in self.run_dirs]

    def run_digests(self) -> dict[str, str]:
        """Digests of each run's predictions and exposure."""
        seen = {f"{run_name(run_dir)} exposure": content_digest(seen_by(run_dir)) for run_dir in self.run_dirs}
        return self.prediction_digests() | seen

    def prediction_digests(self) -> dict[str, str]:
        return {run_name(run_dir): table_meta(run_dir / PREDICTIONS)["digest"] for run_dir in self.run_dirs}

    def thresholds(self, name: str) -> dict[str, str]:
        own = self.settings.of(name)
        return {"settings": json.dumps(own, sort_keys=True)} if own else {}


def _exposure_of_runs(name: str, sources: Sources) -> pd.DataFrame:
    seen = [seen_by(run_dir) for run_dir in sources.run_dirs]
    predicted = [set(frame["id"]) for frame in sources.predictions()]
    return lineage.of_predictions(name, zip(seen, predicted, strict=True))


class Recipe(NamedTuple):
    frame: Callable[[Sources], pd.DataFrame]
    inputs: Callable[[Sources], dict[str, str]] = Sources.run_digests
    """name -> digest of what the table is made from"""
    exposure: Callable[[str, Sources], pd.DataFrame] = _exposure_of_runs


def inputs_of(name: str, sources: Sources) -> dict[str, str]:
    """The `inputs` of a table."""
    return RECIPES[name].inputs(sources) | sources.thresholds(name)


def labels_digest(cache: Cache) -> str:
    labels = labels_of(cache)[["id", *TARGETS]].astype({target: "Int64" for target in TARGETS})
    return digest_rows(labels.itertuples(index=False))


def pseudo_inputs(sources: Sources) -> dict[str, str]:
    path = sources.path("vertebra_ratios")
    return {
        "vertebra_ratios": table_meta(path)["digest"],
        "vertebra_ratios exposure": table_meta(lineage.table_file(path))["digest"],
        "labels": labels_digest(sources.cache),
    }


def _pseudo_exposure(name: str, sources: Sources) -> pd.DataFrame:
    path = sources.path("vertebra_ratios")
    rows = set(read_table(path)["id"])
    seen = lineage.kept_for_table(path)
    through = [] if seen is None else [lineage.into_rows(name, seen, rows)]
    return lineage.merged([lineage.own_labels(name, rows), *through])


def _study_boxes(sources: Sources) -> pd.DataFrame:
    predictions = sources.predictions()
    known = sources.cache.index[["id", "rows", "columns", "slices"]]
    predicted = known[known["id"].isin(set(pd.concat(predictions)["id"]))]
    return boxes.study_boxes(predictions, predicted, **dict(sources.settings))


def _pseudo_labels(sources: Sources) -> pd.DataFrame:
    return pseudo.pseudo_labels(read_table(sources.path("vertebra_ratios")), labels_of(sources.cache))


def _study_predictions(sources: Sources) -> pd.DataFrame:
    return studies.study_predictions(sources.predictions(), labels_of(sources.cache))


RECIPES = {
    "study_boxes": Recipe(_study_boxes),
    "vertebra_ratios": Recipe(lambda sources: ratios.vertebra_ratios(sources.predictions())),
    "pseudo_labels": Recipe(_pseudo_labels, pseudo_inputs, _pseudo_exposure),
    "study_predictions": Recipe(_study_predictions),
}
