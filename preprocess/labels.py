"""The labels table of a cache: labels from a CSV, folds from a CSV or drawn. A build never changes either."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cache_schema import Cache, CacheWriter
from cache_schema.columns import LABEL_COLUMNS, labels_frame
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import LABELS, TARGETS
from cache_schema.store_path import Place
from cache_schema.tables import read_table, table_bytes, table_meta
from preprocess.csv_tables import StudyRow, at, read_by_study, shown
from preprocess.folds import assign_folds
from preprocess.pseudonyms import Pseudonyms

DEFAULT_FOLDS = 5
MAX_FOLDS = 100
MADE_BY_BUILD = "preprocess build-cache"
MADE_BY_LABELS = "preprocess labels"


@dataclass(frozen=True)
class LabelsAndFolds:
    """What the user gave. labels: indexed by id, the eight targets, Int8; None where there is no file. folds: a number, or id -> fold."""

    labels: pd.DataFrame | None
    labels_digest: str | None
    folds: int | pd.Series
    folds_name: str
    """the number, or the digest of the file"""
    folds_given: bool
    labels_file: Path | None = None
    folds_file: Path | None = None


def read_labels_and_folds(
    labels: str | Path | None, folds: str | int | Path | None, rename: Callable[[str], str] = str
) -> LabelsAndFolds:
    """Read what was given; `rename` turns a UID into a cache's id. Raises UsageError naming file, line and column."""
    labels_file = None if labels is None else Path(labels)
    table, digest = (None, None) if labels_file is None else _read_labels(labels_file, rename)
    given, folds = folds is not None, str(DEFAULT_FOLDS if folds is None else folds)
    if folds.lstrip("-").isdigit():
        if not 2 <= int(folds) <= MAX_FOLDS:
            raise UsageError(
                f"{folds} folds", where="--folds", expected=f"a number from 2 to {MAX_FOLDS}, or a CSV file"
            )
        return LabelsAndFolds(table, digest, int(folds), str(int(folds)), given, labels_file)
    rows, folds_digest = read_by_study(Path(folds), ("fold",), _fold, rename)
    column = pd.Series({id: row.values[0] for id, row in rows.items()}, dtype="int64")
    return LabelsAndFolds(table, digest, column, folds_digest, given, labels_file, Path(folds))


def _read_labels(file: Path, rename: Callable[[str], str]) -> tuple[pd.DataFrame, str]:
    """The eight targets, Int8, indexed by id, and the digest of the file's bytes."""
    rows, digest = read_by_study(file, TARGETS, _label, rename)
    for id, row in rows.items():
        _check_agrees(file, id, row)
    ids = pd.Index(list(rows), dtype="str", name="id")
    values = {target: [row.values[place] for row in rows.values()] for place, target in enumerate(TARGETS)}
    return pd.DataFrame(values, index=ids, dtype="Int8"), digest


def _check_agrees(file: Path, id: str, row: StudyRow) -> None:
    """A patient without a fracture has no fractured vertebra. The other way round may be: there are more than C1 to C7."""
    broken = [target for target, value in zip(TARGETS[1:], row.values[1:], strict=True) if value]
    if row.values[0] == 0 and broken:
        raise UsageError(f"patient_overall of {shown(id)} is 0, but {broken[0]} is 1", where=at(file, row.line))


def _label(text: str) -> int | None:
    if not text:
        return None
    number = {"false": 0, "true": 1}.get(text.casefold(), _number(text))
    if number not in (0, 1):
        raise ValueError("neither 0 nor 1 nor empty")
    return int(number)


def _fold(text: str) -> int:
    number = _number(text)
    if number is None or not (0 <= number < MAX_FOLDS and number == int(number)):
        raise ValueError(f"not a whole number from 0 to {MAX_FOLDS - 1}")
    return int(number)


def _number(text: str) -> float | None:
    """Of digits as a spreadsheet writes them; float() takes more."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def check_named(want: LabelsAndFolds, ids: set[str], of: str = "the source", do: str | None = None) -> str | None:
    """What to say where labels or folds from a CSV and the studies `ids` do not match, None where they do.

    Raises UsageError where one of the CSVs names none of them.
    """
    counts = []
    for what, file, named in (("labels", want.labels_file, want.labels), ("folds", want.folds_file, want.folds)):
        if file is None or named is None or isinstance(named, int):
            continue
        both = len(ids.intersection(named.index))
        if ids and not both:
            raise UsageError(f"names no study of {of}", where=file, do=do)
        if both != len(ids) or both != len(named):
            counts.append(
                f"the {what} name {both} of {len(ids)} studies of {of}, and {len(named) - both} that it does not have"
            )
    return "; ".join(counts) or None


@dataclass(frozen=True)
class LabelsTable:
    """A labels.parquet: its frame and what its metadata says."""

    frame: pd.DataFrame
    made_by: str
    inputs: dict[str, str]
    folds_name: str

    @classmethod
    def read(cls, cache: Place) -> "LabelsTable | None":
        """That of a cache, or None where it has none."""
        path = cache / LABELS
        if not path.is_file():
            return None
        meta = table_meta(path)
        try:
            frame = labels_frame(read_table(path))
        except (KeyError, ValueError, TypeError) as error:
            do = f"remove it, then run: preprocess labels {cache} CSV"
            raise CacheError("is not a table of labels", where=path, do=do) from error
        return cls(frame, meta["made_by"], meta["inputs"], meta.get("folds", ""))

    def write(self, writer: CacheWriter, report: pd.DataFrame | None = None) -> None:
        """Write it into a cache, under the writer's lock, with a new index and, where one is given, a new report."""
        writer.finish(self.frame, report, made_by=self.made_by, inputs=self.inputs, extra={"folds": self.folds_name})

    def as_bytes(self) -> bytes:
        return table_bytes(self.frame, self.made_by, self.inputs, {"folds": self.folds_name})[0]


def check_same(old: LabelsTable, new: LabelsAndFolds, *, labels_given: bool, cache: Place) -> None:
    """Raise UsageError where labels or folds given now are not those of the cache.

    A train.csv that was only found beside the images does not argue with a table made by `preprocess labels`.
    """
    do = f"to change labels or folds, run: preprocess labels {cache} CSV [--folds CSV|N]"
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
            f"{int(differs.sum())} studies have other labels, first {kept.index[differs][0]}",
            where=cache / LABELS,
            do=do,
        )


def make_table(index: pd.DataFrame, new: LabelsAndFolds, old: LabelsTable | None, made_by: str) -> LabelsTable:
    """Labels and folds of every study in `index`.

    Studies that `old` knows keep their rows there; without `old`, folds are drawn with levels and segmentations balanced.
    """
    ids = pd.Index(sorted(index["id"]), dtype="str", name="id")
    labels = pd.DataFrame(index=ids, columns=list(TARGETS), dtype="Int8")
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


def _folds(index: pd.DataFrame, labels: pd.DataFrame, new: LabelsAndFolds, fixed: pd.Series | None) -> pd.Series:
    if isinstance(new.folds, pd.Series):
        folds = new.folds.reindex(labels.index).astype("Int8")
        return folds if fixed is None else fixed.reindex(labels.index).fillna(folds)
    segmented = index.set_index("id")["segmentation_digest"].notna().astype("Int8")
    count = new.folds
    if fixed is not None and len(fixed.dropna()):
        count = max(count, int(fixed.max()) + 1) if new.folds_given else int(fixed.max()) + 1
    return assign_folds(labels.assign(segmented=segmented), count, fixed)


def replace_labels(
    cache: str | Place, labels: str | Path, folds: str | Path | None = None, pseudonymise: str | Path | None = None
) -> tuple[int, int]:
    """Write labels.parquet anew; folds stay where none are asked for. Returns (studies of the cache, those with labels).

    pseudonymise: the key that the cache's ids were made with, where the CSVs name the original ones.
    Raises UsageError where a CSV is wrong or names no study of the cache.
    """
    Cache(cache)
    rename = str if pseudonymise is None else Pseudonyms.read(pseudonymise)
    new, writer = read_labels_and_folds(labels, folds, rename), CacheWriter(cache)
    with writer.locked():
        index = writer.make_index()
        do = None if pseudonymise else "if the cache holds pseudonyms, give --pseudonymise KEYFILE"
        check_named(new, set(index["id"]), "the cache", do)
        assert new.labels is not None, "a CSV of labels was named"
        labelled = int(index["id"].isin(new.labels.index).sum())
        old = None if folds is not None else LabelsTable.read(writer.path)
        table = make_table(index, new, None, MADE_BY_LABELS) if old is None else _with_folds_of(old, index, new)
        replace(table, made_by=MADE_BY_LABELS).write(writer)
    return len(index), labelled


def _with_folds_of(old: LabelsTable, index: pd.DataFrame, new: LabelsAndFolds) -> LabelsTable:
    """New labels for all; folds as they were, drawn for studies that had none."""
    assert new.labels is not None and new.labels_digest is not None, "a CSV of labels was named"
    labels = new.labels.reindex(index["id"]).astype("Int8")
    labels["fold"] = old.frame.set_index("id")["fold"].reindex(labels.index)
    relabelled = replace(old, frame=labels_frame(labels.rename_axis("id").reset_index()))
    return replace(make_table(index, new, relabelled, MADE_BY_LABELS), inputs={"labels": new.labels_digest})
