"""The labels table of a cache: labels from a CSV, folds from a CSV or drawn, and the rule that they do not change in passing."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cache_schema import Cache, CacheWriter
from cache_schema.columns import LABEL_COLUMNS, labels_frame
from cache_schema.errors import UsageError
from cache_schema.layout import LABELS, TARGETS
from cache_schema.tables import read_table, table_meta
from preprocess.folds import assign_folds
from preprocess.pseudonyms import Pseudonyms

ID_COLUMN = "StudyInstanceUID"
DEFAULT_FOLDS = 5
MAX_FOLDS = 100
MADE_BY_BUILD = "preprocess build-cache"
MADE_BY_LABELS = "preprocess labels"


@dataclass(frozen=True)
class Wanted:
    """What the user gave. labels: indexed by id, the eight targets, Int8; None where there is no file. folds: a number, or id -> fold."""

    labels: pd.DataFrame | None
    labels_digest: str | None
    folds: int | pd.Series
    folds_name: str
    """the number, or the digest of the file"""
    folds_given: bool


def wanted(labels: str | Path | None, folds: str | int | Path | None, rename: Callable[[str], str] = str) -> Wanted:
    """Read what was given; `rename` turns a UID into a cache's id. Raises UsageError naming file, row and column."""
    table, digest = (None, None) if labels is None else _read_csv(labels, TARGETS, rename)
    if table is not None:
        numbers = table.apply(pd.to_numeric, errors="coerce")
        wrong = ~(numbers.isin((0, 1)) | table.isna())
        if wrong.any(axis=None):
            id, target = wrong.stack()[lambda cells: cells].index[0]
            raise UsageError(f"{target} of {id} is neither 0 nor 1 nor empty", where=labels)
        table = numbers.astype("Int8")
    given, folds = folds is not None, str(DEFAULT_FOLDS if folds is None else folds)
    if folds.lstrip("-").isdigit():
        if not 2 <= int(folds) <= MAX_FOLDS:
            raise UsageError(
                f"{folds} folds", where="--folds", expected=f"a number from 2 to {MAX_FOLDS}, or a CSV file"
            )
        return Wanted(table, digest, int(folds), str(int(folds)), given)
    column, folds_digest = _read_csv(folds, ("fold",), rename)
    numbers = pd.to_numeric(column["fold"], errors="coerce")
    if not (numbers.between(0, MAX_FOLDS - 1) & (numbers % 1 == 0)).all():
        raise UsageError("a fold is not a whole number", where=folds, expected=f"0 to {MAX_FOLDS - 1}")
    return Wanted(table, digest, numbers.astype("int64"), folds_digest, given)


def _read_csv(path: str | Path, columns: tuple[str, ...], rename: Callable[[str], str]) -> tuple[pd.DataFrame, str]:
    """These columns as text, indexed by id, and the digest of the file's bytes."""
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such file", where=path, expected="a CSV file")
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (ValueError, OSError) as error:
        raise UsageError("is not a readable CSV file", where=path) from error
    for column in (ID_COLUMN, *columns):
        if column not in table.columns:
            raise UsageError(f"has no column {column}", where=path, expected=", ".join((ID_COLUMN, *columns)))
    if table[ID_COLUMN].isna().any():
        raise UsageError(f"a row has no {ID_COLUMN}", where=path)
    table.index = pd.Index([rename(id) for id in table[ID_COLUMN]], name="id", dtype="str")
    if table.index.duplicated().any():
        raise UsageError(f"{table.index[table.index.duplicated()][0]} is there twice", where=path)
    return table[list(columns)], hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class LabelsTable:
    """A labels.parquet: its frame and what its metadata says."""

    frame: pd.DataFrame
    made_by: str
    inputs: dict[str, str]
    folds_name: str

    @classmethod
    def read(cls, cache: Path) -> "LabelsTable | None":
        """That of a cache, or None where it has none."""
        path = cache / LABELS
        if not path.is_file():
            return None
        meta = table_meta(path)
        return cls(labels_frame(read_table(path)), meta["made_by"], meta["inputs"], meta.get("folds", ""))


def check_same(old: LabelsTable, new: Wanted, *, labels_given: bool, cache: Path) -> None:
    """Raise UsageError where labels or folds given now are not those of the cache.

    A train.csv that was only found beside the images does not argue with a table made by `preprocess labels`.
    """
    do = f"to change labels or folds on purpose: preprocess labels {cache} CSV [--folds CSV|N]"
    if new.folds_given and new.folds_name != old.folds_name:
        raise UsageError("has other folds than --folds asks for", where=cache / LABELS, do=do)
    if new.labels is None or (old.made_by == MADE_BY_LABELS and not labels_given):
        return
    kept = old.frame.set_index("id")[list(TARGETS)]
    kept = kept.loc[kept.index.intersection(new.labels.index)]
    given = new.labels.loc[kept.index]
    differs = (kept.fillna(-1) != given.fillna(-1)).any(axis=1)
    if differs.any():
        raise UsageError(
            f"{int(differs.sum())} studies are labelled otherwise, first {kept.index[differs][0]}",
            where=cache / LABELS,
            do=do,
        )


def make_table(index: pd.DataFrame, new: Wanted, old: LabelsTable | None, made_by: str) -> LabelsTable:
    """Labels and folds of every study in `index`.

    Studies that `old` knows keep their rows there; without `old`, folds are drawn with levels and segmentations balanced.
    """
    ids = pd.Index(sorted(index["id"]), dtype="str", name="id")
    labels = pd.DataFrame(pd.NA, index=ids, columns=list(TARGETS), dtype="Int8")
    if new.labels is not None:
        labels = new.labels.reindex(ids).astype("Int8")
    known = None if old is None else old.frame.set_index("id").reindex(ids.intersection(old.frame["id"]))
    if known is not None:
        labels = pd.concat([known[list(TARGETS)], labels.drop(known.index)]).sort_index()
    folds = _folds(index, labels, new, None if known is None else known["fold"])
    frame = labels_frame(labels.assign(fold=folds).reset_index()[list(LABEL_COLUMNS)])
    inputs = {"labels": new.labels_digest} if new.labels_digest else {}
    if old is not None:
        return LabelsTable(frame, old.made_by, old.inputs, old.folds_name)
    return LabelsTable(frame, made_by, inputs, new.folds_name)


def _folds(index: pd.DataFrame, labels: pd.DataFrame, new: Wanted, fixed: pd.Series | None) -> pd.Series:
    if isinstance(new.folds, pd.Series):
        folds = new.folds.reindex(labels.index).astype("Int8")
        return folds if fixed is None else fixed.reindex(labels.index).fillna(folds)
    segmented = index.set_index("id")["segmentation_digest"].notna().astype("Int8")
    count = new.folds
    if fixed is not None and len(fixed.dropna()):
        count = max(count, int(fixed.max()) + 1) if new.folds_given else int(fixed.max()) + 1
    return assign_folds(labels.assign(segmented=segmented), count, fixed)


def replace_labels(
    cache: str | Path, labels: str | Path, folds: str | Path | None = None, pseudonymise: str | Path | None = None
) -> tuple[int, int]:
    """Write labels.parquet anew; folds stay where none are asked for. Returns (studies of the cache, those with labels).

    pseudonymise: the key that the cache's ids were made with, where the CSVs name the original ones.
    Raises UsageError where the CSV is wrong or names no study of the cache.
    """
    Cache(cache)
    rename = str if pseudonymise is None else Pseudonyms.read(pseudonymise)
    new, writer = wanted(labels, folds, rename), CacheWriter(cache)
    with writer.locked():
        index = writer.make_index()
        labelled = int(index["id"].isin(new.labels.index).sum())
        if not labelled:
            do = None if pseudonymise else "where the cache holds pseudonyms: --pseudonymise KEYFILE"
            raise UsageError("names no study of the cache", where=labels, do=do)
        old = None if folds is not None else LabelsTable.read(Path(cache))
        table = make_table(index, new, None, MADE_BY_LABELS) if old is None else _with_folds_of(old, index, new)
        writer.finish(table.frame, made_by=MADE_BY_LABELS, inputs=table.inputs, extra={"folds": table.folds_name})
    return len(index), labelled


def _with_folds_of(old: LabelsTable, index: pd.DataFrame, new: Wanted) -> LabelsTable:
    """New labels for all; folds as they were, drawn for studies that had none."""
    labels = new.labels.reindex(index["id"]).astype("Int8")
    labels["fold"] = old.frame.set_index("id")["fold"].reindex(labels.index)
    relabelled = replace(old, frame=labels_frame(labels.rename_axis("id").reset_index()))
    return replace(make_table(index, new, relabelled, MADE_BY_LABELS), inputs={"labels": new.labels_digest})
