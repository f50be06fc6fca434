"""Exposure as it flows from runs into tables and from tables into runs, and which scores it forbids. Pure, but for the tables' files.

What has been seen is kept as groups (trainer.leakage.groups), with a shortest way for each row, study and kind.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pandas as pd

from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import own_meta, read_table, table_meta, write_table
from trainer.leakage.groups import (
    ARROW,
    LABEL,
    ROW,
    SEGMENTATION,
    STUDY,
    UNKNOWN,
    WEIGHTS,
    Exposure,
    Group,
    Pair,
    from_table,
    normal,
    pairs_of,
    to_table,
)

OF_WEIGHTS = frozenset({WEIGHTS})
MADE_HERE = re.compile(r"(study_boxes|vertebra_ratios|pseudo_labels|study_predictions) \d+")
"""`made_by` of tables that have an exposure file: name and version, as trainer.tables.make writes them"""


class ForbiddenScore(UsageError):
    """A score on a study whose label (for stages 1 and 2: segmentation) the run has seen."""

    exit_status = 1


def used(name: str, studies: Iterable[str], kind: str) -> Exposure:
    """The exposure of weights trained on the labels or segmentations of these studies."""
    return normal([Group(OF_WEIGHTS, frozenset(studies), kind, 0, name)])


def unknown(name: str, what: str) -> Exposure:
    """The exposure of a run through an input without an exposure file."""
    return (Group(OF_WEIGHTS, frozenset({""}), UNKNOWN, 1, f"{name}{ARROW}{what}"),)


def of_weights(name: str, exposure: Exposure) -> Exposure:
    """The exposure of predictions with another run's weights, with the same number of steps."""
    through = into_weights(name, exposure, role="weights")
    return tuple(group._replace(steps=group.steps - 1) for group in through)


def into_weights(name: str, exposure: Exposure, rows: Collection[str] | None = None, role: str = "") -> Exposure:
    """The exposure of a run's weights through `rows` of a table or, if None, through another run's weights.

    role: how the run used it, such as `backbone`.
    """
    start, chosen = (
        f"{name}{ARROW}{role} " if role else f"{name}{ARROW}",
        frozenset([WEIGHTS] if rows is None else rows),
    )
    through = (group for own in exposure for group in _of_some_row(own, own.rows & chosen))
    return normal(_after(start, OF_WEIGHTS, through))


def into_rows(name: str, exposure: Exposure, rows: Collection[str]) -> Exposure:
    """The exposure of rows of another table, or of predictions, through the same rows of this one."""
    chosen = frozenset(rows)
    return normal(group for own in exposure for group in _after(_row_start(name), own.rows & chosen, [own]))


def weights_into_rows(name: str, exposures: Iterable[Exposure], rows: Collection[str]) -> Exposure:
    """The exposure of `rows` of a table through the weights of the runs that predicted all of them; it names each of them."""
    seen = (group for exposure in exposures for group in exposure if group.of_weights)
    return normal(_after(_row_start(name), frozenset(rows), seen))


def own_labels(name: str, rows: Collection[str]) -> Exposure:
    """The exposure of rows computed from their own study's labels, as in pseudo_labels."""
    return normal([Group(frozenset(rows), frozenset({ROW}), LABEL, 0, f"{name} row {ROW}")])


def of_predictions(name: str, runs: Iterable[tuple[Exposure, Collection[str]]]) -> Exposure:
    """The exposure of a table made from predictions. runs: exposure and predicted studies of each run."""
    runs = list(runs)
    by_studies: dict[tuple[int, ...], list[str]] = {}
    for study in sorted({study for _, studies in runs for study in studies}):
        by_studies.setdefault(tuple(i for i, (_, own) in enumerate(runs) if study in own), []).append(study)
    weights = [weights_into_rows(name, [runs[i][0] for i in own], rows) for own, rows in by_studies.items()]
    return merged([*weights, *(into_rows(name, exposure, studies) for exposure, studies in runs)])


def merged(exposures: Iterable[Exposure]) -> Exposure:
    """All of them together; unknown ones are kept for each input."""
    return normal(group for exposure in exposures for group in exposure)


def seen_by_weights(exposure: Exposure, kind: str) -> frozenset[str]:
    """The studies whose label or segmentation the weights have seen."""
    return frozenset().union(*(group.studies for group in exposure if group.of_weights and group.kind == kind))


def seen_at_all(exposure: Exposure) -> frozenset[str]:
    """The studies that the weights, or any row, have seen."""
    seen = (group.rows | group.studies if ROW in group.studies else group.studies for group in exposure)
    return frozenset().union(*seen) - {ROW, ""}


def unknown_inputs(exposure: Exposure) -> list[Pair]:
    """A pair for each row and input of unknown exposure, in order."""
    return list(pairs_of(group for group in exposure if group.kind == UNKNOWN))


def refuse_exposed(learns_from: str, exposure: Exposure, scored: Collection[str]) -> None:
    """Raises ForbiddenScore, with the way, if a run with this exposure may not be scored on these studies.

    learns_from: of its stage (trainer.stages.base). A stage that learns from segmentations must not have trained on the
    study's own segmentation. Others: neither weights nor the study's predicted row may have seen its label.
    """
    if learns_from == "segmentations":
        kind, seen = SEGMENTATION, [pair for pair in _on(exposure, SEGMENTATION, scored) if pair.steps == 0]
    else:
        kind, seen = LABEL, _on(exposure, LABEL, scored)
    if not seen:
        return
    first = min(seen, key=lambda pair: (pair.steps, pair.study, pair.row))
    more = len({pair.study for pair in seen}) - 1
    raise ForbiddenScore(
        f"may not be scored: {first.way}{ARROW}{kind} of {first.study}" + (f" (and {more} more)" if more else ""),
        where=f"study {first.study}",
        do="use runs and tables made without this study's fold",
    )


def other_segmentations(exposures: Mapping[str, tuple[Exposure, Collection[str]]]) -> pd.DataFrame:
    """run, study, way: scored studies whose segmentation the run has seen, and inputs of unknown exposure (study "").

    exposures: name of the run -> its exposure and the studies it is scored on.
    """
    found = []
    for run, (exposure, scored) in exposures.items():
        for seen in (_on(exposure, SEGMENTATION, scored), unknown_inputs(exposure)):
            ways: dict[str, str] = {}
            for pair in sorted(seen, key=lambda pair: (pair.study, pair.steps, pair.row, pair.way)):
                ways.setdefault(pair.study, pair.way)
            found += [(run, *seen) for seen in ways.items()]
    return pd.DataFrame(found, columns=["run", "study", "way"])


def table_file(table: Path) -> Path:
    return table.with_name(f"{table.stem}.exposure.parquet")


def keep_for_table(table: Path, digest: str, exposure: Exposure) -> None:
    """Writes the exposure of a table's content. Call it before the table is written, so that no table lacks one."""
    write_table(table_file(table), to_table(exposure), f"exposure of {table.stem}", {"table": digest})


def kept_for_table(table: Path) -> Exposure | None:
    """The exposure of a table; None for an imported table without one. Raises CacheError if it is damaged, or missing
    although trainer.tables made the table."""
    path, meta = table_file(table), table_meta(table)
    if path.is_file() and own_meta(path)["inputs"].get("table") == meta["digest"]:
        return from_table(read_table(path))
    if MADE_HERE.fullmatch(meta["made_by"]):
        raise CacheError("is missing, or belongs to another table", where=path, do=f"make {table.name} again")
    return None


def _on(exposure: Exposure, kind: str, scored: Collection[str]) -> list[Pair]:
    """The pairs of this kind about scored studies, of the weights and of each study's own prediction."""
    asked = frozenset(scored)
    found = []
    for group in exposure:
        if group.kind == kind and group.of_weights:
            found.append(group._replace(studies=group.studies & asked))
        elif group.kind == kind:
            own = group.rows & asked if ROW in group.studies else group.rows & asked & group.studies
            found.append(group._replace(rows=own, studies=frozenset({ROW})))
    return list(pairs_of(found))


def _of_some_row(group: Group, rows: frozenset[str]) -> Iterable[Group]:
    """What whoever takes these rows of a group sees: each study by the first way, by its letters."""
    if not rows:
        return
    way = group.way if group.of_weights else min(group.way_of(row, STUDY) for row in rows)
    yield group._replace(studies=group.studies - {ROW}, way=way)
    if ROW in group.studies:
        yield group._replace(studies=rows, way=group.way_of(STUDY, STUDY))


def _row_start(name: str) -> str:
    return f"{name} row {ROW}{ARROW}"


def _after(start: str, rows: frozenset[str], groups: Iterable[Group]) -> Iterable[Group]:
    return (group._replace(rows=rows, steps=group.steps + 1, way=start + group.way) for group in groups)
