"""What a run reads: the cache, its labels and folds, and the tables it was given; with the digests that make a run what it is.

Nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache, Study
from cache_schema.columns import BOX, DECIMALS, FRACTURES, FULL_FRAME, STUDY_BOX
from cache_schema.errors import UsageError
from cache_schema.tables import read_table, table_meta
from cache_schema.values import misfit
from trainer.runs.files import MODEL_FILE
from trainer.runs.weights import weights_digest
from trainer.settings.keyvalue import nearest
from trainer.settings.settings import Settings

FROM_RUNS = "make it from {} runs of this cache that hold all its folds out: python -m trainer.tables RUNS cache=CACHE"
"""what helps where a table does not fit the cache"""


class Inputs:
    """Opened once per process. Raises UsageError for what the settings name and is not there."""

    def __init__(self, settings: Settings, cache: Cache | None = None, standing: Mapping[str, str] | None = None):
        """cache: the one that the settings name, where it is open already. standing: digests, by the names of
        `training_digests`, that stand for tables or a backbone that are no longer there."""
        self.settings, self.standing = settings, standing or {}
        self.cache = cache or Cache(settings.cache)
        self.index = self.cache.index.set_index("id", drop=False)
        labels = self.cache.labels
        unlabelled = settings.mode == "predict" and settings.split == "all"
        if labels is None and unlabelled:
            labels = pd.DataFrame(columns=["id", *TARGETS, "fold"])
        if labels is None:
            raise UsageError("the cache holds no labels", where=settings.cache, do="run: preprocess labels CACHE CSV")
        self.labels = labels.set_index("id").reindex(self.index.index)
        if (
            not unlabelled
            and settings.fold != "all"
            and settings.fold not in set(self.labels["fold"].dropna().astype(int))
        ):
            folds = sorted(set(self.labels["fold"].dropna().astype(int)))
            raise UsageError(
                f"no study is in fold {settings.fold}", where=settings.cache, expected=f"fold={folds} or all"
            )

    @property
    def segmented(self) -> bool:
        """Whether the stage trains, and is scored, on segmented studies only."""
        return self.settings.facts.learns_from == "segmentations"

    def train_ids(self) -> list[str]:
        """Studies to train on: `training_fold_ids`, and of these, where boxes decide what is seen, those with one.

        The reference trains on no study whose box was not found; it is predicted all the same (its 3.3).
        """
        ids = self.training_fold_ids()
        return [id for id in ids if id not in self.without_box] if self.settings.needs_boxes else ids

    def training_fold_ids(self) -> list[str]:
        """Studies outside the held-out fold, with fold=all every study; segmented ones for a stage that learns from masks."""
        fold = self.labels["fold"]
        chosen = fold.notna() if self.settings.fold == "all" else fold.notna() & (fold != self.settings.fold)
        return self._scored(self._ids(chosen))

    def eval_ids(self) -> list[str]:
        """Held-out studies, or all with split=all; none where fold=all holds nothing out."""
        fold = self.labels["fold"]
        if self.settings.split == "all":
            return sorted(self.index.index)
        return [] if self.settings.fold == "all" else self._ids(fold == self.settings.fold)

    def scored_ids(self) -> list[str]:
        """Those of `eval_ids` that the stage is scored on."""
        return self._scored(self.eval_ids())

    def _ids(self, chosen: pd.Series) -> list[str]:
        return sorted(self.index.index[chosen.fillna(False)])

    def _scored(self, ids: list[str]) -> list[str]:
        if not self.segmented:
            return ids
        segmented = self.index["segmentation_digest"].notna()
        return [id for id in ids if segmented[id]]

    def read_ids(self) -> list[str]:
        """Every study that the run may read: trained on, predicted, or scored with, since a baseline is that of the training folds."""
        training = self.settings.mode == "train" or self.segmented
        trained = self.training_fold_ids() if training else []
        return sorted({*trained, *self.eval_ids()})

    def lengths(self, ids: list[str]) -> list[tuple[str, int]]:
        """(id, slices) of each study."""
        return list(zip(ids, self.index.loc[ids, "slices"].astype(int), strict=True))

    @cached_property
    def _studies(self) -> dict[str, Study]:
        return {}

    def study(self, id: str) -> Study:
        if id not in self._studies:
            self._studies[id] = self.cache.study(id)
        return self._studies[id]

    @cached_property
    def boxes(self) -> pd.DataFrame:
        """study_boxes by id: x0 y0 x1 y1 z_from z_to, native pixels and z_index, exclusive ends; found, false where the whole
        frame and all slices stand for a box that was not found."""
        path = self.settings.boxes
        if path is None:
            raise UsageError("no boxes given", do="add boxes=TABLE or boxes=cache")
        columns = list(STUDY_BOX)
        if str(path) == "cache":
            found = {id: self.cache.record(id).study_box for id in self.index.index}
            rows = [{"id": id, **{name: getattr(box, name) for name in columns}} for id, box in found.items() if box]
            table = pd.DataFrame(rows, columns=["id", *columns])
        else:
            table = _read(path, ["id", *columns])
        where = f"boxes={path}"
        if table["id"].duplicated().any() or table[columns].isna().any().any():
            raise UsageError("holds a study twice or without a box", where=where, do=FROM_RUNS.format("bbox"))
        if wrong := misfit(table, columns, whole=True):
            raise UsageError(wrong, where=where, expected="whole numbers", do=FROM_RUNS.format("bbox"))
        whole = table["source"].eq(FULL_FRAME).to_numpy() if "source" in table.columns else None
        table = table.set_index("id")[columns].astype(int)
        known = table.join(self.index[["rows", "columns", "slices"]], how="inner").astype(int)
        fits = (known["x0"] >= 0) & (known["x0"] < known["x1"]) & (known["x1"] <= known["columns"])
        fits &= (known["y0"] >= 0) & (known["y0"] < known["y1"]) & (known["y1"] <= known["rows"])
        fits &= (known["z_from"] >= 0) & (known["z_from"] < known["z_to"]) & (known["z_to"] <= known["slices"])
        if not fits.all():
            raise UsageError(
                f"the box of {known.index[~fits][0]} lies outside its study", where=where, do=FROM_RUNS.format("bbox")
            )
        if whole is not None:
            return table.assign(found=~whole)
        known["found"] = (known[columns] != _whole(known)).any(axis=1)
        return table.assign(found=known["found"].reindex(table.index, fill_value=True))

    @cached_property
    def without_box(self) -> frozenset[str]:
        """Studies in which no box was found."""
        return frozenset(self.boxes.index[~self.boxes["found"]])

    def crop_boxes(self, ids: list[str]) -> dict[str, tuple[int, int, int, int]] | None:
        """Native boxes of these studies; None for a variant that looks at whole slices."""
        if not self.settings.data.crop:
            return None
        self.require_boxes(ids)
        return {id: tuple(row) for id, *row in self.boxes.loc[ids, BOX].itertuples()}

    def require_boxes(self, ids: list[str]) -> None:
        missing = sorted(set(ids) - set(self.boxes.index))
        if missing:
            raise UsageError(
                f"{len(missing)} studies have no box, first {missing[0]}",
                where=f"boxes={self.settings.boxes}",
                do="run: preprocess set-boxes CACHE TABLE"
                if str(self.settings.boxes) == "cache"
                else FROM_RUNS.format("bbox"),
            )

    @cached_property
    def pseudo_table(self) -> pd.DataFrame:
        """id, z_index, C1..C7, C1_frac..C7_frac."""
        table = _read(self.settings.pseudo, ["id", "z_index", *LEVELS, *FRACTURES])
        wrong = misfit(table, ["z_index"], least=0, whole=True)
        if wrong := wrong or misfit(table, [*LEVELS, *FRACTURES], 0.0, 1.0, unknown=True):
            expected, do = "z_index from 0 on, and values from 0 to 1 or null", FROM_RUNS.format("vertebrae")
            raise UsageError(wrong, where=f"pseudo={self.settings.pseudo}", expected=expected, do=do)
        return table

    @cached_property
    def pseudo(self) -> dict[str, np.ndarray]:
        """id -> (slices, 14) float32: C1..C7 ratios then fractures per z_index; NaN where unknown."""
        found = {}
        for id, rows in self.pseudo_table.groupby("id", sort=False):
            if id in self.index.index:
                slices = int(self.index.at[id, "slices"])
                if rows["z_index"].max() >= slices or rows["z_index"].duplicated().any():
                    line = f"{id} has a slice twice, or one beyond its {slices}"
                    raise UsageError(line, where=f"pseudo={self.settings.pseudo}", do=FROM_RUNS.format("vertebrae"))
                values = np.full((slices, 14), np.nan, np.float32)
                values[rows["z_index"].to_numpy(int)] = rows[[*LEVELS, *FRACTURES]].to_numpy(np.float64).round(DECIMALS)
                found[id] = values
        return found

    @property
    def label_table(self) -> pd.DataFrame:
        """id, patient_overall, C1..C7 of every study; null where unknown."""
        return self.labels.reset_index(drop=True).assign(id=self.labels.index)[["id", *TARGETS]]

    def label_row(self, id: str) -> np.ndarray:
        """(8,) float32: patient_overall, C1..C7; NaN where unknown."""
        return self._label_rows[id]

    @cached_property
    def _label_rows(self) -> dict[str, np.ndarray]:
        values = self.labels[list(TARGETS)].astype("Float32").to_numpy(np.float32, na_value=np.nan)
        return dict(zip(self.labels.index, values, strict=True))

    def training_digests(self) -> dict[str, str]:
        """What the weights depend on, by name: the studies trained on, and the tables and backbone given."""
        return self.cache_digests() | self._source_digests(training=True)

    def cache_digests(self) -> dict[str, str]:
        """The part of `training_digests` that comes from the cache itself."""
        return self._digests(self.training_fold_ids())

    def held_out_digests(self) -> dict[str, str]:
        """The part of `prediction_digests` that comes from the cache itself."""
        return self._digests(self.eval_ids())

    def prediction_digests(self) -> dict[str, str]:
        """What a prediction depends on beside its weights."""
        return self.held_out_digests() | self._source_digests(training=False)

    def _digests(self, ids: list[str]) -> dict[str, str]:
        index = self.index.loc[ids]
        parts = {
            "pixel_hash": self.cache.pixel_hash,
            "studies": digest_rows(index[["id", "content_digest"]].itertuples(index=False)),
        }
        if self.segmented:
            parts["segmentations"] = digest_rows(index[["id", "segmentation_digest"]].itertuples(index=False))
        if self.settings.facts.learns_from == "labels":
            labels = self.labels.loc[ids, list(TARGETS)].astype("Int64")
            parts["labels"] = digest_rows(labels.reset_index().itertuples(index=False))
        return parts

    def _source_digests(self, *, training: bool) -> dict[str, str]:
        settings, parts = self.settings, {}
        if settings.needs_boxes:
            parts["boxes"] = lambda: digest_rows(self.boxes.reset_index().itertuples(index=False))
        if training and settings.facts.learns_from == "pseudo_labels" and settings.pseudo is not None:
            parts["pseudo"] = lambda: table_meta(settings.pseudo)["digest"]
        if training and settings.facts.backbone is not None and settings.backbone is not None:
            parts["backbone"] = lambda: weights_digest(settings.backbone / MODEL_FILE)
        return {name: self.standing.get(name) or digest() for name, digest in parts.items()}

    def require_unchanged(self) -> None:
        """Raises CacheError where a study to be read is not the one of the index, and so of the digests above."""
        for id in self.read_ids():
            self.cache.require_unchanged(id)

    def check_fresh(self) -> None:
        """Raises StaleStudy where a study to be read was replaced or removed since this run opened the cache."""
        for id in self.read_ids():
            self.cache.check_fresh(id)


def _whole(studies: pd.DataFrame) -> np.ndarray:
    """(n, 6) the boxes that hold each whole study. studies: rows, columns, slices."""
    ends = {"x1": studies["columns"], "y1": studies["rows"], "z_to": studies["slices"]}
    return pd.DataFrame({name: ends.get(name, 0) for name in STUDY_BOX}, index=studies.index).to_numpy()


def own_boxes_digest(table: pd.DataFrame) -> str | None:
    """As `training_digests` has it, of a study_boxes table; None of one that does not say where the whole frame stands for a box."""
    if "source" not in table.columns:
        return None
    return digest_rows(table[["id", *STUDY_BOX]].assign(found=table["source"] != FULL_FRAME).itertuples(index=False))


def digest_rows(rows: Iterable[tuple]) -> str:
    """sha256 hex of rows of plain values. Numbers count by what they are, not by how they are held: 0, 0.0, and Int8's 0."""
    text = "\n".join(json.dumps([_plain(value) for value in row]) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> int | float | str | None:
    if pd.isna(value):
        return None
    if isinstance(value, str):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    table = read_table(path)
    for column in columns:
        if column not in table.columns:
            raise UsageError(f"has no column {column}", where=path, do=nearest(column, map(str, table.columns)))
    return table
