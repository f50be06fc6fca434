"""Makes the tables of RUNS/tables from finished runs, each only where what it is made from has changed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.documents import write_whole
from cache_schema.errors import UsageError
from cache_schema.tables import content_digest, read_table, table_meta, write_table
from trainer import exposure
from trainer.identity import PREDICTIONS
from trainer.tables import boxes, lineage, pseudo, ratios, scoring, studies
from trainer.tables.scores import read_scores, render, render_levels, write_scores
from trainer.tables.settings import TableSettings

VERSION = "2"
"""raised when a table is computed differently from the same inputs"""


@dataclass(frozen=True)
class Sources:
    """Where tables come from: RUNS, the cache, the folders of the runs that are pooled, and the thresholds."""

    out: Path
    cache: Cache
    run_dirs: tuple[Path, ...]
    settings: TableSettings

    def path(self, name: str) -> Path:
        return self.out / "tables" / f"{name}.parquet"

    def predictions(self) -> list[pd.DataFrame]:
        return [read_table(run_dir / PREDICTIONS) for run_dir in self.run_dirs]

    def run_digests(self) -> dict[str, str]:
        """Of each run's predictions and of what the run has seen."""
        digests = {}
        for run_dir in self.run_dirs:
            name = str(run_dir.relative_to(self.out))
            digests[name] = table_meta(run_dir / PREDICTIONS)["digest"]
            digests[f"{name} exposure"] = content_digest(exposure.kept(run_dir))
        return digests


@dataclass(frozen=True)
class Recipe:
    inputs: Callable[[Sources], dict[str, str]]
    """name -> digest of what the table is made from"""
    frame: Callable[[Sources], pd.DataFrame]
    exposure: Callable[[Sources], pd.DataFrame]


def _box_frame(sources: Sources) -> pd.DataFrame:
    predictions = sources.predictions()
    known = sources.cache.index[["id", "rows", "columns", "slices"]]
    predicted = known[known["id"].isin(set(pd.concat(predictions)["id"]))]
    return boxes.study_boxes(predictions, predicted, **dict(sources.settings))


def _pseudo_inputs(sources: Sources) -> dict[str, str]:
    labels = sources.cache.labels[["id", *TARGETS]].astype({target: "Int64" for target in TARGETS})
    path = sources.path("vertebra_ratios")
    return {
        "vertebra_ratios": table_meta(path)["digest"],
        "vertebra_ratios exposure": table_meta(lineage.table_file(path))["digest"],
        "labels": hashlib.sha256(labels.to_csv(index=False).encode()).hexdigest(),
    }


def _pseudo_exposure(sources: Sources) -> pd.DataFrame:
    path = sources.path("vertebra_ratios")
    rows = set(read_table(path)["id"])
    seen = lineage.kept_for_table(path)
    through = [] if seen is None else [lineage.into_rows("pseudo_labels", seen, rows)]
    return lineage.merged([lineage.own_labels("pseudo_labels", rows), *through])


def _exposure_of_runs(name: str) -> Callable[[Sources], pd.DataFrame]:
    def of(sources: Sources) -> pd.DataFrame:
        seen = [exposure.kept(run_dir) for run_dir in sources.run_dirs]
        predicted = [set(frame["id"]) for frame in sources.predictions()]
        return lineage.of_predictions(name, zip(seen, predicted, strict=True))

    return of


RECIPES = {
    "study_boxes": Recipe(Sources.run_digests, _box_frame, _exposure_of_runs("study_boxes")),
    "vertebra_ratios": Recipe(
        Sources.run_digests,
        lambda sources: ratios.vertebra_ratios(sources.predictions()),
        _exposure_of_runs("vertebra_ratios"),
    ),
    "pseudo_labels": Recipe(
        _pseudo_inputs,
        lambda sources: pseudo.pseudo_labels(read_table(sources.path("vertebra_ratios")), sources.cache.labels),
        _pseudo_exposure,
    ),
    "study_predictions": Recipe(
        Sources.run_digests,
        lambda sources: studies.study_predictions(sources.predictions(), sources.cache.labels),
        _exposure_of_runs("study_predictions"),
    ),
}

POOLS = {"study_boxes": "bbox", "vertebra_ratios": "vertebrae", "study_predictions": "study_fracture"}
"""the stage whose held-out predictions a table pools"""


def is_made(name: str, sources: Sources) -> bool:
    """Whether the table is there, with its lineage, made from these very inputs by this version."""
    path = sources.path(name)
    if not path.is_file() or lineage.kept_for_table(path) is None:
        return False
    meta = table_meta(path)
    return meta["made_by"] == f"{name} {VERSION}" and meta["inputs"] == _inputs(name, sources)


def make(
    name: str, out: Path, cache: Cache, run_dirs: Iterable[Path] = (), settings: TableSettings | None = None
) -> bool:
    """Writes one table, or scores.json, unless it is made already. Returns whether it had to be made."""
    sources = Sources(out, cache, tuple(run_dirs), settings or TableSettings())
    if name == "scores":
        return _scores(sources)
    made = not is_made(name, sources)
    if made:
        path, frame = sources.path(name), RECIPES[name].frame(sources)
        path.parent.mkdir(parents=True, exist_ok=True)
        for id in cache.ids:  # runs may have predicted for days
            cache.require_unchanged(id)
        lineage.keep_for_table(path, content_digest(frame), RECIPES[name].exposure(sources))
        write_table(path, frame, f"{name} {VERSION}", _inputs(name, sources))
    if name == "study_predictions":
        submission = studies.submission(read_table(sources.path(name)))
        write_whole(out / "tables" / "submission.csv", submission.to_csv(index=False).encode())
    return made


def make_all(out: Path, cache: Cache, settings: TableSettings | None = None) -> list[str]:
    """Every table that the runs found under RUNS allow; returns their names.

    settings: by default those that study_boxes was made with before.
    """
    if cache.labels is None:
        raise UsageError("the cache holds no labels", where=cache.path, do="run: preprocess labels CACHE CSV")
    found, settings = held_out_runs(out), settings or made_with(out)
    made = []
    for name, stage in POOLS.items():
        own = [run_dir for run_dir in found if run_dir.parent.name.rpartition("-")[0] == stage]
        if own:
            make(name, out, cache, own, settings)
            made.append(name)
            if name == "vertebra_ratios":
                make("pseudo_labels", out, cache)
                made.append("pseudo_labels")
    if found:
        make("scores", out, cache, found)
        made.append("scores")
    return made


def made_with(out: Path) -> TableSettings:
    """The thresholds that RUNS's study_boxes were made with; the defaults where there are none."""
    path = out / "tables" / "study_boxes.parquet"
    inputs = table_meta(path)["inputs"] if path.is_file() else {}
    return TableSettings.model_validate(json.loads(inputs.get("settings", "{}")))


def held_out_runs(out: Path) -> list[Path]:
    """Folders of runs that hold a fold out and have predicted it, sorted."""
    found = out.glob(f"[!.]*-*/fold[0-9]*-seed*/{PREDICTIONS}")
    return sorted(path.parent for path in found if table_meta(path)["inputs"].get("split") == "held_out")


def summary(out: Path) -> str:
    """What is to be read after a plan: scores, scores by level, unusual boxes, segmentations that reached what is scored."""
    tables, parts = out / "tables", []
    if (tables / "scores.json").is_file():
        rows = read_scores(tables / "scores.json")
        parts += [render(rows), render_levels(rows)]
    if (tables / "study_boxes.parquet").is_file():
        parts.append(boxes.report(read_table(tables / "study_boxes.parquet")))
    if (tables / scoring.EXPOSED_FILE).is_file():
        parts.append(scoring.exposure_report(pd.read_csv(tables / scoring.EXPOSED_FILE, dtype=str).fillna("")))
    return "".join(f"{part}\n" for part in parts if part)


def _scores(sources: Sources) -> bool:
    """scores.json of what may be scored. Raises ForbiddenScore, once the rest is written, for what may not."""
    found = scoring.score_runs(sources.cache, sources.run_dirs, sources.path("pseudo_labels"))
    tables = sources.out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    write_scores(tables / "scores.json", found.rows)
    write_whole(tables / scoring.EXPOSED_FILE, found.exposed.to_csv(index=False).encode())
    for variant in found.unknown:
        print(f"{variant}: not scored, since nothing is known of the studies that it holds out")
    if found.refused:
        raise found.refused[0]
    return True


def _inputs(name: str, sources: Sources) -> dict[str, str]:
    inputs, own = RECIPES[name].inputs(sources), sources.settings.of(name)
    return inputs | ({"settings": json.dumps(own, sort_keys=True)} if own else {})
