"""Makes the tables of RUNS/tables from finished runs; a table whose inputs have not changed is kept."""

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cache_schema import Cache
from cache_schema.documents import write_whole
from cache_schema.errors import CacheError, CspineError
from cache_schema.store_path import each
from cache_schema.tables import content_digest, own_meta, read_table, table_meta, write_table
from trainer.leakage import lineage
from trainer.process.command import warn_once
from trainer.runs.held_out import without_stage
from trainer.runs.inputs import labels_of
from trainer.runs.run_names import RunName
from trainer.scores import calibration
from trainer.scores.scores import read_scores, render, render_levels, write_scores
from trainer.settings.stage_registry import stage_class, stage_names
from trainer.tables import boxes, scoring, studies
from trainer.tables.calibration import FILE as CALIBRATION_FILE
from trainer.tables.calibration import make_calibration
from trainer.tables.finished import FinishedRuns, Pool, seen_by
from trainer.tables.recipes import Sources, inputs_of, labels_digest, made_by, recipe_of
from trainer.tables.settings import TableSettings


def is_made(name: str, sources: Sources) -> bool:
    """Whether the table and its exposure exist, undamaged, made from these inputs by this version."""
    path = sources.path(name)
    if not path.is_file():
        return False
    try:
        meta = own_meta(path)
        if lineage.kept_for_table(path) is None:
            return False
    except CacheError as error:
        by = " with the given thresholds, or the defaults" if name == "study_boxes" else ""
        warn_once(f"{error.where}: {error.what}: {name} is made again{by}")
        return False
    return meta["made_by"] == made_by(name) and meta["inputs"] == inputs_of(name, sources)


def make(
    name: str, out: Path, cache: Cache, run_dirs: Iterable[Path] = (), settings: TableSettings | None = None
) -> bool:
    """Writes one table, or scores.json, unless it is up to date. Returns whether it was written."""
    sources = Sources(out, cache, tuple(run_dirs), settings or TableSettings())
    if name == "scores":
        return _scores(sources)
    made = not is_made(name, sources)
    if made:
        path, recipe = sources.path(name), recipe_of(name)
        frame = recipe.frame(sources)
        path.parent.mkdir(parents=True, exist_ok=True)
        each(cache.require_unchanged, cache.ids, cache.path)  # predicting may have taken days
        lineage.keep_for_table(path, content_digest(frame), recipe.exposure(name, sources))
        write_table(path, frame, made_by(name), inputs_of(name, sources))
    if name == "study_predictions":
        submission = studies.submission(read_table(sources.path(name)))
        write_whole(out / "tables" / "submission.csv", submission.to_csv(index=False).encode())
        make_calibration(sources)
    return made


@dataclass
class TablesMade:
    """The result of `make_all`."""

    made: list[str] = field(default_factory=list)
    problems: list[CspineError] = field(default_factory=list)
    """tables that could not be made, and refused scores"""
    whole: bool = True
    """whether all tables under RUNS are made from this cache and these runs"""


def make_all(out: Path, cache: Cache, settings: TableSettings | None = None) -> TablesMade:
    """Makes all tables that the finished runs under RUNS allow, each after those that it needs.

    Stale runs are reported and left out. If a table would be incomplete without them, it and all later tables are kept as
    they are. settings: by default those of the existing study_boxes.
    """
    labels_of(cache)  # raises UsageError if there are none
    if settings is None:
        with suppress(CacheError):  # a damaged table is reported when it is made again
            settings = made_with(out)
    runs, made, mixed = FinishedRuns(out, cache), TablesMade(), False
    scored: list[Path] = []
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
    """Why the stage's tables cannot be made; None if they can."""
    if not pool.problem:
        return None
    what = f"{' and '.join(stage_class(stage).tables or (f'the scores of {stage}',))} cannot be made: {pool.problem}"
    return CacheError(what, do="give the cache of these runs, or run the plan again")


def _left_over(tables: Collection[str], out: Path, cache: Cache) -> CacheError | None:
    """Why stage 3 cannot be scored on pseudo labels that exist without their runs; None if it can."""
    path = out / "tables/pseudo_labels.parquet"
    if "pseudo_labels" not in tables or not path.is_file():
        return None
    if table_meta(path)["inputs"].get("labels") in (None, labels_digest(cache)):  # None: an imported table
        return None
    return CacheError("is made from other labels, and its runs do not exist", where=path, do="move it out of RUNS")


def _make(tables: Collection[str], sources: Sources, made: TablesMade) -> CacheError | None:
    """Makes the tables. If a run's exposure is unknown, tables made from the same predictions are kept as they are."""
    try:
        for run_dir in sources.run_dirs:
            seen_by(run_dir)
    except CspineError as lost:
        if not all(_is_of(name, sources) for name in tables):
            return CacheError(f"{' and '.join(tables)} cannot be made: {lost.where} {lost.what}", do=lost.do)
        print(f"{' and '.join(tables)} kept as made before: {lost.where} {lost.what}", flush=True)
        return None
    for name in tables:
        make(name, sources.out, sources.cache, sources.run_dirs, sources.settings)
        made.made.append(name)
    return None


def _is_of(name: str, sources: Sources) -> bool:
    """Whether a table is undamaged and made from these runs' predictions, or from the current table before it."""
    try:
        made_from, seen = own_meta(sources.path(name))["inputs"], lineage.kept_for_table(sources.path(name))
        now = recipe_of(name).inputs_without_exposure(sources) | sources.thresholds(name)
    except CspineError:
        return False
    return seen is not None and now.items() <= made_from.items()


def made_with(out: Path) -> TableSettings:
    """The thresholds of the existing study_boxes under RUNS, or the defaults. Raises CacheError."""
    path = out / "tables" / "study_boxes.parquet"
    inputs = table_meta(path)["inputs"] if path.is_file() else {}
    return TableSettings.model_validate(json.loads(inputs.get("settings", "{}")))


def summary(out: Path) -> str:
    """A report: scores, scores by level, the calibration, outlying boxes, and scored studies whose segmentation a run has seen."""
    tables, parts = out / "tables", []
    if (tables / "scores.json").is_file():
        rows = read_scores(tables / "scores.json")
        parts += [render(rows), render_levels(rows)]
    if (tables / CALIBRATION_FILE).is_file():
        parts.append(calibration.render(calibration.Calibration.read(tables / CALIBRATION_FILE)))
    if (tables / "study_boxes.parquet").is_file():
        parts.append(boxes.report(read_table(tables / "study_boxes.parquet")))
    if (tables / scoring.EXPOSED_FILE).is_file():
        parts.append(scoring.exposure_report(scoring.read_exposed(tables / scoring.EXPOSED_FILE)))
    return "".join(f"{part}\n" for part in parts if part)


def _scores(sources: Sources) -> bool:
    """Writes scores.json. Raises ForbiddenScore afterwards if some runs may not be scored."""
    found = scoring.score_runs(sources.cache, sources.run_dirs, sources.path("pseudo_labels"))
    tables = sources.out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    write_scores(tables / "scores.json", found.rows)
    write_whole(tables / scoring.EXPOSED_FILE, found.exposed.to_csv(index=False).encode())
    for variant in found.unknown:
        print(f"{variant}: not scored: the truth of its held-out studies is unknown")
    for error in found.refused[1:]:
        print(f"not scored: {error}")
    if found.refused:
        raise found.refused[0]
    return True
