"""Exposure as a frame of all pairs of a row and a study: what trainer.leakage must answer alike without keeping them.

    row    the study whose row of a table, or of a run's predictions, has seen; "" for a run's weights
    study  the study whose label or segmentation it is
    kind   label, segmentation, or unknown for an input without an exposure file (study is then "")
    steps  the number of artefacts in between
    way    these artefacts, joined by ` <- `

A frame holds one shortest way for each (row, study, kind).
"""

from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from trainer.leakage.lineage import ForbiddenScore

COLUMNS = ["row", "study", "kind", "steps", "way"]
LABEL, SEGMENTATION, UNKNOWN = "label", "segmentation", "unknown"
WEIGHTS = ""
ARROW = " <- "


def used(name: str, studies: Iterable[str], kind: str) -> pd.DataFrame:
    """The exposure of weights trained on the labels or segmentations of these studies."""
    return _frame([(WEIGHTS, study, kind, 0, name) for study in studies])


def unknown(name: str, what: str) -> pd.DataFrame:
    """The exposure of a run through an input without an exposure file."""
    return _frame([(WEIGHTS, "", UNKNOWN, 1, f"{name}{ARROW}{what}")])


def of_weights(name: str, exposure: pd.DataFrame) -> pd.DataFrame:
    """The exposure of predictions with another run's weights, with the same number of steps."""
    return into_weights(name, exposure, role="weights").assign(steps=lambda seen: seen["steps"] - 1)


def into_weights(
    name: str, exposure: pd.DataFrame, rows: Collection[str] | None = None, role: str = ""
) -> pd.DataFrame:
    """The exposure of a run's weights through `rows` of a table or, if None, through another run's weights.

    role: how the run used it, such as `backbone`.
    """
    chosen = exposure[exposure["row"] == WEIGHTS] if rows is None else exposure[exposure["row"].isin(list(rows))]
    prefix = f"{name}{ARROW}{role} " if role else f"{name}{ARROW}"
    return merged([_through(prefix, chosen).assign(row=WEIGHTS)])


def into_rows(name: str, exposure: pd.DataFrame, rows: Collection[str]) -> pd.DataFrame:
    """The exposure of rows of another table, or of predictions, through the same rows of this one."""
    chosen = exposure[exposure["row"].isin(list(rows))]
    return _through(_row_prefix(name, chosen["row"]), chosen)


def weights_into_rows(name: str, exposures: Iterable[pd.DataFrame], rows: Collection[str]) -> pd.DataFrame:
    """The exposure of `rows` of a table through the weights of the runs that predicted all of them."""
    seen = merged([frame[frame["row"] == WEIGHTS] for frame in exposures]).drop(columns="row")
    crossed = pd.DataFrame({"row": sorted(rows)}).merge(seen, how="cross")
    return _through(_row_prefix(name, crossed["row"]), crossed)


def own_labels(name: str, rows: Collection[str]) -> pd.DataFrame:
    """The exposure of rows computed from their own study's labels, as in pseudo_labels."""
    return _frame([(row, row, LABEL, 0, f"{name} row {row}") for row in sorted(rows)])


def of_predictions(name: str, runs: Iterable[tuple[pd.DataFrame, Collection[str]]]) -> pd.DataFrame:
    """The exposure of a table made from predictions. runs: exposure and predicted studies of each run."""
    runs = list(runs)
    by_studies: dict[tuple[int, ...], list[str]] = {}
    for study in sorted({study for _, studies in runs for study in studies}):
        by_studies.setdefault(tuple(i for i, (_, own) in enumerate(runs) if study in own), []).append(study)
    weights = [weights_into_rows(name, [runs[i][0] for i in own], rows) for own, rows in by_studies.items()]
    return merged([*weights, *(into_rows(name, exposure, studies) for exposure, studies in runs)])


def merged(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One sorted frame with a shortest way for each (row, study, kind); unknown ones are kept for each input."""
    every = pd.concat([_frame([]), *frames], ignore_index=True)
    ordered = every.sort_values(["row", "study", "kind", "steps", "way"], kind="stable")
    origin = ordered["way"].str.split(ARROW).str[-1].where(ordered["kind"] == UNKNOWN, "")
    first = ~ordered.assign(origin=origin).duplicated(["row", "study", "kind", "origin"])
    return ordered[first].reset_index(drop=True).astype({"steps": "int64"})


def refuse_exposed(learns_from: str, exposure: pd.DataFrame, scored: Collection[str]) -> None:
    """Raises ForbiddenScore, with the way, if a run with this exposure may not be scored on these studies.

    learns_from: of its stage (trainer.stages.base). A stage that learns from segmentations must not have trained on the
    study's own segmentation. Others: neither weights nor the study's predicted row may have seen its label.
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
    """run, study, way: scored studies whose segmentation the run has seen, and inputs of unknown exposure (study "").

    exposures: name of the run -> its exposure and the studies it is scored on.
    """
    found = []
    for run, (exposure, scored) in exposures.items():
        seen = _on(exposure, scored)
        for part in (seen[seen["kind"] == SEGMENTATION], exposure[exposure["kind"] == UNKNOWN]):
            shortest = part.sort_values(["study", "steps"], kind="stable").drop_duplicates("study")
            found += [(run, *pair) for pair in shortest[["study", "way"]].itertuples(index=False)]
    return pd.DataFrame(found, columns=["run", "study", "way"])


def _on(exposure: pd.DataFrame, scored: Collection[str]) -> pd.DataFrame:
    """The rows about scored studies, of the weights and of each study's own prediction."""
    own = (exposure["row"] == WEIGHTS) | (exposure["row"] == exposure["study"])
    return exposure[own & exposure["study"].isin(list(scored))]


def _row_prefix(name: str, rows: pd.Series) -> pd.Series:
    return name + " row " + rows + ARROW


def _through(prefix: str | pd.Series, exposure: pd.DataFrame) -> pd.DataFrame:
    return exposure.assign(way=prefix + exposure["way"], steps=exposure["steps"] + 1)[COLUMNS]


def _frame(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({name: "int64" if name == "steps" else "str" for name in COLUMNS})
