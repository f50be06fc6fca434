"""Which figures the tables and trainings under RUNS allow, each with its pages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pandas as pd
from matplotlib.figure import Figure

from cache_schema import Cache
from cache_schema.columns import FRACTURES
from cache_schema.errors import CacheError
from cache_schema.tables import read_table
from trainer.look import boxes, reliability
from trainer.look import curves_over_z as curves
from trainer.look import learning_curves as learning
from trainer.runs.file_names import PREDICTIONS
from trainer.runs.held_out import held_out_runs
from trainer.runs.run_names import RunName
from trainer.scores.calibration import Calibration
from trainer.settings.stage_registry import stage_class
from trainer.tables.calibration import FILE as CALIBRATION_FILE
from trainer.tables.pooling import mean_over_runs

Pages = Iterator[Figure]
Read = TypeVar("Read")
TABLES = ("study_boxes", "vertebra_ratios", "pseudo_labels", "study_predictions")


def figures(runs: Path, cache: Cache | None, count: int) -> Iterator[tuple[str, Pages]]:
    """(name, pages) of each. count: studies in the figures that show single ones, evenly spread over all sorted by id.

    What is damaged is left out, and the first of it raised as CacheError once all else is drawn.
    """
    damaged: list[CacheError] = []

    def whole(read: Callable[[Path], Read], path: Path) -> Read | None:
        try:
            return read(path)
        except CacheError as error:
            damaged.append(error)
            return None

    paths = {name: runs / "tables" / f"{name}.parquet" for name in TABLES}
    found = {name: whole(read_table, path) for name, path in paths.items() if path.is_file()}
    found["slice_fractures"] = whole(slice_fractures, runs)
    tables = {name: table for name, table in found.items() if table is not None}
    ratios, study_boxes = tables.get("vertebra_ratios"), tables.get("study_boxes")
    over_z = ratios if ratios is not None else tables.get("slice_fractures")
    if over_z is not None:
        yield "curves", curves.pages(tables, cache, _some(over_z, cache, count))
    if study_boxes is not None and cache is not None and (beyond := _first_beyond(study_boxes, cache)):
        line = f"the box of {beyond} lies outside its study in {cache.path}"
        damaged.append(CacheError(line, where=paths["study_boxes"], do="give the cache that it is of"))
    elif study_boxes is not None and cache is not None:
        yield "boxes", boxes.pages(study_boxes, cache, _some(study_boxes, cache, count))
    lengths = slices_of(cache, ratios)
    if study_boxes is not None and lengths is not None:
        yield "z-range", boxes.z_range_histogram(study_boxes, lengths)
    file = runs / "tables" / CALIBRATION_FILE
    if file.is_file() and (calibration := whole(Calibration.read, file)) is not None:
        yield "reliability", reliability.pages(calibration)
    histories = learning.histories(runs)
    if histories:
        yield "learning", learning.pages(histories)
    if damaged:
        raise damaged[0]


def all_tables(runs: Path) -> dict[str, pd.DataFrame]:
    """`TABLES` and `slice_fractures`, those that there are. Raises CacheError for a damaged one."""
    paths = {name: runs / "tables" / f"{name}.parquet" for name in TABLES}
    found = {name: read_table(path) for name, path in paths.items() if path.is_file()} | {
        "slice_fractures": slice_fractures(runs)
    }
    return {name: table for name, table in found.items() if table is not None}


def slice_fractures(runs: Path) -> pd.DataFrame | None:
    """Held-out predictions of fractures by slice, averaged over seeds and variants; None where there are none."""
    own = [run for run in held_out_runs(runs) if set(FRACTURES) <= set(stage_class(RunName.of(run).stage).columns)]
    return mean_over_runs([read_table(run / PREDICTIONS) for run in own], ["id", "z_index"]) if own else None


def slices_of(cache: Cache | None, ratios: pd.DataFrame | None) -> pd.Series | None:
    """id -> slices of the study: from the cache, else from the ratios, which cover every slice."""
    if cache is not None:
        return cache.index.set_index("id")["slices"]
    return None if ratios is None else ratios.groupby("id")["z_index"].max() + 1


def _first_beyond(boxes: pd.DataFrame, cache: Cache) -> str | None:
    """The first study whose box is not within what the cache has of it."""
    known = boxes.merge(cache.index[["id", "rows", "columns", "slices"]], on="id")
    beyond = (known["x1"] > known["columns"]) | (known["y1"] > known["rows"]) | (known["z_to"] > known["slices"])
    return min(known.loc[beyond, "id"], default=None)


def _some(table: pd.DataFrame, cache: Cache | None, count: int) -> list[str]:
    """At most `count` of a table's studies, of those in the cache where there is one."""
    ids = sorted(set(table["id"]) if cache is None else set(table["id"]).intersection(cache.ids))
    count = min(count, len(ids))
    return [ids[place * len(ids) // count] for place in range(count)]
