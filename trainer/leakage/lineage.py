"""Whose label or segmentation a run or a table's row has seen, and by which way. Pure functions on data frames.

An exposure frame has a row for each thing seen:

    row    the study whose row of a table, or of a run's predictions, has seen it; "" for a run's weights
    study  whose label or segmentation it is
    kind   label, segmentation, or unknown where something came in without its lineage (study is then "")
    steps  how many artefacts lie between: 0 where the run itself trained on it, or the row was computed from it
    way    these artefacts, from this one back to the one that used the label itself, joined by ` <- `

It holds one way, a shortest, for each (row, study, kind).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pandas as pd

from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import own_meta, read_table, table_meta, write_table

COLUMNS = ["row", "study", "kind", "steps", "way"]
LABEL, SEGMENTATION, UNKNOWN = "label", "segmentation", "unknown"
WEIGHTS = ""
ARROW = " <- "
MADE_HERE = re.compile(r"(study_boxes|vertebra_ratios|pseudo_labels|study_predictions) \d+")
"""who made a table that has a lineage beside it: its name and version, as `trainer.tables.make` writes them"""


class ForbiddenScore(UsageError):
    """A score on a study whose label, or for stages 1 and 2 segmentation, what is scored has seen."""

    exit_status = 1


def used(name: str, studies: Iterable[str], kind: str) -> pd.DataFrame:
    """A run's weights that trained on these studies' labels or segmentations."""
    return _frame([(WEIGHTS, study, kind, 0, name) for study in studies])


def unknown(name: str, what: str) -> pd.DataFrame:
    """What a run was given without any lineage beside it."""
    return _frame([(WEIGHTS, "", UNKNOWN, 1, f"{name}{ARROW}{what}")])


def of_weights(name: str, exposure: pd.DataFrame) -> pd.DataFrame:
    """What predictions under `name` with another run's weights have seen: the same, no step further from it."""
    return into_weights(name, exposure, role="weights").assign(steps=lambda seen: seen["steps"] - 1)


def into_weights(
    name: str, exposure: pd.DataFrame, rows: Collection[str] | None = None, role: str = ""
) -> pd.DataFrame:
    """What a run's weights have seen through a table's `rows` or, where None, through another run's weights.

    role: how the run used it, as `backbone`.
    """
    chosen = exposure[exposure["row"] == WEIGHTS] if rows is None else exposure[exposure["row"].isin(list(rows))]
    prefix = f"{name}{ARROW}{role} " if role else f"{name}{ARROW}"
    return merged([_through(prefix, chosen).assign(row=WEIGHTS)])


def into_rows(name: str, exposure: pd.DataFrame, rows: Collection[str]) -> pd.DataFrame:
    """What the same rows of another table or of predictions have seen through these rows."""
    chosen = exposure[exposure["row"].isin(list(rows))]
    return _through(_row_prefix(name, chosen["row"]), chosen)


def weights_into_rows(name: str, exposures: Iterable[pd.DataFrame], rows: Collection[str]) -> pd.DataFrame:
    """What `rows` of a table have seen through the weights of the runs that predicted them all."""
    seen = merged([frame[frame["row"] == WEIGHTS] for frame in exposures]).drop(columns="row")
    crossed = pd.DataFrame({"row": sorted(rows)}).merge(seen, how="cross")
    return _through(_row_prefix(name, crossed["row"]), crossed)


def own_labels(name: str, rows: Collection[str]) -> pd.DataFrame:
    """Rows computed from their own study's labels, as those of pseudo_labels are."""
    return _frame([(row, row, LABEL, 0, f"{name} row {row}") for row in sorted(rows)])


def of_predictions(name: str, runs: Iterable[tuple[pd.DataFrame, Collection[str]]]) -> pd.DataFrame:
    """A table made from runs' predictions. runs: each with its exposure and the studies it predicted."""
    runs = list(runs)
    by_studies: dict[tuple[int, ...], list[str]] = {}
    for study in sorted({study for _, studies in runs for study in studies}):
        by_studies.setdefault(tuple(i for i, (_, own) in enumerate(runs) if study in own), []).append(study)
    weights = [weights_into_rows(name, [runs[i][0] for i in own], rows) for own, rows in by_studies.items()]
    return merged([*weights, *(into_rows(name, exposure, studies) for exposure, studies in runs)])


def merged(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One frame with a shortest way for each (row, study, kind), of unknown ones for each input too; sorted."""
    every = pd.concat([_frame([]), *frames], ignore_index=True)
    ordered = every.sort_values(["row", "study", "kind", "steps", "way"], kind="stable")
    origin = ordered["way"].str.split(ARROW).str[-1].where(ordered["kind"] == UNKNOWN, "")
    first = ~ordered.assign(origin=origin).duplicated(["row", "study", "kind", "origin"])
    return ordered[first].reset_index(drop=True).astype({"steps": "int64"})


def refuse_exposed(learns_from: str, exposure: pd.DataFrame, scored: Collection[str]) -> None:
    """Raises ForbiddenScore naming the way, where a run with this exposure may not be scored on these studies.

    learns_from: of its stage (trainer.stages.base). Segmentations: training on the study's segmentation itself. Labels and
    pseudo labels: any exposure of the weights, or of the study's own predicted row, to the study's label.
    """
    seen = _on(exposure, scored)
    if learns_from == "segmentations":
        seen, kind = seen[(seen["kind"] == SEGMENTATION) & (seen["steps"] == 0)], SEGMENTATION
    else:
        seen, kind = seen[seen["kind"] == LABEL], LABEL
    if seen.empty:
        return
    first = seen.sort_values(["steps", "study"], kind="stable").iloc[0]
    more = seen["study"].nunique() - 1
    raise ForbiddenScore(
        f"may not be scored: {first['way']}{ARROW}{kind} of {first['study']}" + (f" (and {more} more)" if more else ""),
        where=f"study {first['study']}",
        do="use runs and tables made without this study's fold",
    )


def other_segmentations(exposures: Mapping[str, tuple[pd.DataFrame, Collection[str]]]) -> pd.DataFrame:
    """run, study, way: scored studies whose segmentation reached the run, and inputs of unknown lineage (study "").

    exposures: the run's name -> its exposure and the studies it is scored on.
    """
    found = []
    for run, (exposure, scored) in exposures.items():
        seen = _on(exposure, scored)
        for part in (seen[seen["kind"] == SEGMENTATION], exposure[exposure["kind"] == UNKNOWN]):
            shortest = part.sort_values(["study", "steps"], kind="stable").drop_duplicates("study")
            found += [(run, *pair) for pair in shortest[["study", "way"]].itertuples(index=False)]
    return pd.DataFrame(found, columns=["run", "study", "way"])


def table_file(table: Path) -> Path:
    return table.with_name(f"{table.stem}.exposure.parquet")


def keep_for_table(table: Path, digest: str, exposure: pd.DataFrame) -> None:
    """Beside the table, and tied to its content. Written before the table, so that no table is without."""
    write_table(table_file(table), exposure, f"exposure of {table.stem}", {"table": digest})


def kept_for_table(table: Path) -> pd.DataFrame | None:
    """None for a table from elsewhere without a lineage of its content. Raises CacheError where one is damaged, or where a
    table made here has lost its own: what it has seen would be forgotten."""
    path, meta = table_file(table), table_meta(table)
    if path.is_file() and own_meta(path)["inputs"].get("table") == meta["digest"]:
        return read_table(path)
    if MADE_HERE.fullmatch(meta["made_by"]):
        raise CacheError("is gone, or another table's", where=path, do=f"make {table.name} again")
    return None


def _on(exposure: pd.DataFrame, scored: Collection[str]) -> pd.DataFrame:
    """What weights, and each study's own predicted row, have seen of the scored studies."""
    own = (exposure["row"] == WEIGHTS) | (exposure["row"] == exposure["study"])
    return exposure[own & exposure["study"].isin(list(scored))]


def _row_prefix(name: str, rows: pd.Series) -> pd.Series:
    return name + " row " + rows + ARROW


def _through(prefix: str | pd.Series, exposure: pd.DataFrame) -> pd.DataFrame:
    return exposure.assign(way=prefix + exposure["way"], steps=exposure["steps"] + 1)[COLUMNS]


def _frame(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({name: "int64" if name == "steps" else "str" for name in COLUMNS})
