"""Makes the tables of RUNS/tables from finished runs, each only where what it is made from has changed."""

import json
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.documents import write_whole
from cache_schema.errors import CacheError, CspineError, UsageError
from cache_schema.tables import content_digest, own_meta, read_table, table_meta, write_table
from trainer.leakage import lineage
from trainer.runs.damaged import tell
from trainer.runs.files import PREDICTIONS
from trainer.runs.inputs import digest_rows
from trainer.runs.predictions import without_stage
from trainer.runs.run_names import RunName, run_name
from trainer.scores.scores import read_scores, render, render_levels, write_scores
from trainer.settings.registry import stage_class, stage_names
from trainer.tables import boxes, pseudo, ratios, scoring, studies
from trainer.tables.finished import FinishedRuns, Pool, seen_by
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
        seen = {f"{run_name(run_dir)} exposure": content_digest(seen_by(run_dir)) for run_dir in self.run_dirs}
        return self.prediction_digests() | seen

    def prediction_digests(self) -> dict[str, str]:
        return {run_name(run_dir): table_meta(run_dir / PREDICTIONS)["digest"] for run_dir in self.run_dirs}


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


def _labels_digest(cache: Cache) -> str:
    labels = cache.labels[["id", *TARGETS]].astype({target: "Int64" for target in TARGETS})
    return digest_rows(labels.itertuples(index=False))


def _pseudo_inputs(sources: Sources) -> dict[str, str]:
    path = sources.path("vertebra_ratios")
    return {
        "vertebra_ratios": table_meta(path)["digest"],
        "vertebra_ratios exposure": table_meta(lineage.table_file(path))["digest"],
        "labels": _labels_digest(sources.cache),
    }


def _pseudo_exposure(sources: Sources) -> pd.DataFrame:
    path = sources.path("vertebra_ratios")
    rows = set(read_table(path)["id"])
    seen = lineage.kept_for_table(path)
    through = [] if seen is None else [lineage.into_rows("pseudo_labels", seen, rows)]
    return lineage.merged([lineage.own_labels("pseudo_labels", rows), *through])


def _exposure_of_runs(name: str) -> Callable[[Sources], pd.DataFrame]:
    def of(sources: Sources) -> pd.DataFrame:
        seen = [seen_by(run_dir) for run_dir in sources.run_dirs]
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


def is_made(name: str, sources: Sources) -> bool:
    """Whether the table is there whole, with its lineage, made from these very inputs by this version."""
    path = sources.path(name)
    if not path.is_file():
        return False
    try:
        meta = own_meta(path)
        if lineage.kept_for_table(path) is None:
            return False
    except CacheError as error:
        by = " by the thresholds that are given, or else the defaults" if name == "study_boxes" else ""
        tell(f"{error.where}: {error.what}: {name} is made again{by}")
        return False
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


@dataclass
class TablesMade:
    """What `make_all` came to."""

    made: list[str] = field(default_factory=list)
    problems: list[CspineError] = field(default_factory=list)
    """tables that are not made, and scores that are refused"""
    whole: bool = True
    """whether every table under RUNS is one of this cache and these runs"""


def make_all(out: Path, cache: Cache, settings: TableSettings | None = None) -> TablesMade:
    """Every table that the finished runs under RUNS allow, in an order in which each finds what it is made from.

    Stale runs are named and left out. Where a table would hold only a part without them, it and all that comes after is
    left as it was. settings: by default those that study_boxes was made with before.
    """
    if cache.labels is None:
        raise UsageError("the cache holds no labels", where=cache.path, do="run: preprocess labels CACHE CSV")
    if settings is None:
        with suppress(CacheError):  # a damaged one is made again, and named then
            settings = made_with(out)
    runs, made, scored, mixed = FinishedRuns(out, cache), TablesMade(), [], False
    for name in without_stage(out):
        print(f"{name}: left out: no stage {RunName.of(name).stage} is installed", flush=True)
    for stage in stage_names():
        pool = runs.pool(stage)
        for line in pool.lines:
            print(line, flush=True)
        tables, problem = stage_class(stage).tables, _problem(stage, pool)
        paths = [out / "tables" / f"{name}.parquet" for name in tables]
        if problem is None and pool.run_dirs and tables and not mixed:
            problem = _make(tables, Sources(out, cache, pool.run_dirs, settings or TableSettings()), made)
        if not pool.run_dirs and problem is None and (problem := _left_over(tables, out, cache)) is not None:
            mixed = True
        if problem is not None:
            made.problems.append(problem)
            made.whole = False
            runs.outdated.update(paths)
        scored += pool.run_dirs
        mixed |= pool.mixed
    if scored and not mixed:
        try:
            make("scores", out, cache, scored)
        except lineage.ForbiddenScore as error:
            made.problems.append(error)
        made.made.append("scores")
    return made


def _problem(stage: str, pool: Pool) -> CacheError | None:
    """Why the stage's tables cannot be made."""
    if not pool.problem:
        return None
    what = f"{' and '.join(stage_class(stage).tables or (f'the scores of {stage}',))} cannot be made: {pool.problem}"
    return CacheError(what, do="give the cache that these runs are of, or make them again: trainer.plan does it")


def _left_over(tables: Collection[str], out: Path, cache: Cache) -> CacheError | None:
    """Why pseudo labels that lie there without their runs cannot be what stage 3 is scored on."""
    path = out / "tables/pseudo_labels.parquet"
    if "pseudo_labels" not in tables or not path.is_file():
        return None
    made_of = table_meta(path)["inputs"].get("labels")  # a table from elsewhere does not say
    if made_of in (None, _labels_digest(cache)):
        return None
    return CacheError("is of other labels, and its runs are not there", where=path, do="take it out of RUNS")


def _make(tables: Collection[str], sources: Sources, made: TablesMade) -> CacheError | None:
    """Makes them; where nobody knows what a run has seen, tables of its very predictions stay as they are."""
    lost = _lost(sources.run_dirs)
    if lost is None:
        for name in tables:
            make(name, sources.out, sources.cache, sources.run_dirs, sources.settings)
            made.made.append(name)
    elif all(_is_of(name, sources) for name in tables):
        print(f"{' and '.join(tables)} left as made before: {lost.where} {lost.what}", flush=True)
    else:
        return CacheError(f"{' and '.join(tables)} cannot be made: {lost.where} {lost.what}", do=lost.do)
    return None


def _lost(run_dirs: Iterable[Path]) -> CspineError | None:
    """The first run whose exposure is gone or damaged."""
    for run_dir in run_dirs:
        try:
            seen_by(run_dir)
        except CspineError as error:
            return error
    return None


def _is_of(name: str, sources: Sources) -> bool:
    """Whether a table is whole and was made from these runs' predictions, or from the table before it."""
    try:
        made_from, seen = own_meta(sources.path(name))["inputs"], lineage.kept_for_table(sources.path(name))
        now = _pseudo_inputs(sources) if name == "pseudo_labels" else sources.prediction_digests()
        now |= _thresholds(name, sources)
    except CspineError:
        return False
    return seen is not None and now.items() <= made_from.items()


def made_with(out: Path) -> TableSettings:
    """The thresholds that RUNS's study_boxes were made with; the defaults where there are none. Raises CacheError."""
    path = out / "tables" / "study_boxes.parquet"
    inputs = table_meta(path)["inputs"] if path.is_file() else {}
    return TableSettings.model_validate(json.loads(inputs.get("settings", "{}")))


def summary(out: Path) -> str:
    """What is to be read after a plan: scores, scores by level, unusual boxes, segmentations that reached what is scored."""
    tables, parts = out / "tables", []
    if (tables / "scores.json").is_file():
        rows = read_scores(tables / "scores.json")
        parts += [render(rows), render_levels(rows)]
    if (tables / "study_boxes.parquet").is_file():
        parts.append(boxes.report(read_table(tables / "study_boxes.parquet")))
    if (tables / scoring.EXPOSED_FILE).is_file():
        parts.append(scoring.exposure_report(scoring.read_exposed(tables / scoring.EXPOSED_FILE)))
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
    for error in found.refused[1:]:
        print(f"not scored: {error}")
    if found.refused:
        raise found.refused[0]
    return True


def _inputs(name: str, sources: Sources) -> dict[str, str]:
    return RECIPES[name].inputs(sources) | _thresholds(name, sources)


def _thresholds(name: str, sources: Sources) -> dict[str, str]:
    own = sources.settings.of(name)
    return {"settings": json.dumps(own, sort_keys=True)} if own else {}
