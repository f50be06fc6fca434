"""What a run reads: the cache, its labels and folds, and the given tables; with their digests. Does not import torch."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache, Study
from cache_schema.columns import BOX, DECIMALS, FRACTURES, FULL_FRAME, STUDY_BOX
from cache_schema.errors import UsageError
from cache_schema.local_copy import LocalCopy
from cache_schema.store_path import StorePath, each
from cache_schema.tables import read_table
from cache_schema.values import misfit
from trainer.runs.sources import boxes_digest, digest_rows, source_digest, source_files
from trainer.settings.keyvalue import require_known
from trainer.settings.settings import Settings

FROM_RUNS = "make it from {} runs of this cache that hold all its folds out: python -m trainer.tables RUNS cache=CACHE"
"""advice for a table that does not fit the cache"""


def labels_of(cache: Cache) -> pd.DataFrame:
    """The cache's labels. Raises UsageError if it has none."""
    if cache.labels is None:
        raise UsageError("the cache holds no labels", where=cache.path, do="run: preprocess labels CACHE CSV")
    return cache.labels


def folds_in(labels: pd.DataFrame) -> set[int]:
    return set(labels["fold"].dropna().astype(int))


class Inputs:
    """Opened once per process. Raises UsageError if an input that the settings name is missing or does not fit."""

    def __init__(self, settings: Settings, cache: Cache | None = None, recorded: Mapping[str, str] | None = None):
        """cache: the cache of the settings, if it is open already. recorded: digests, by the names of `training_digests`, to
        use for sources that no longer exist."""
        self.settings, self.recorded = settings, recorded or {}
        self._studies: dict[str, Study] = {}
        self.cache = cache or open_cache(settings)
        self.index = self.cache.index.set_index("id", drop=False)
        unlabelled = settings.mode == "predict" and settings.split == "all"
        none = pd.DataFrame(columns=["id", *TARGETS, "fold"])
        labels = none if unlabelled and self.cache.labels is None else labels_of(self.cache)
        self.labels = labels.set_index("id").reindex(self.index.index)
        folds = folds_in(self.labels)
        if not unlabelled and settings.fold != "all" and settings.fold not in folds:
            expected = f"fold={sorted(folds)} or all"
            raise UsageError(f"no study is in fold {settings.fold}", where=settings.cache, expected=expected)

    @property
    def segmented(self) -> bool:
        """Whether the stage trains and is scored on segmented studies only."""
        return self.settings.facts.learns_from == "segmentations"

    def train_ids(self) -> list[str]:
        """Studies to train on: `training_fold_ids`; where boxes are needed, without the studies in which none was found.

        As in the reference (3.3), these are predicted but not trained on.
        """
        ids = self.training_fold_ids()
        return [id for id in ids if id not in self.without_box] if self.settings.needs_boxes else ids

    def training_fold_ids(self) -> list[str]:
        """Studies outside the held-out fold, or all with fold=all; only segmented ones if the stage learns from masks."""
        fold = self.labels["fold"]
        chosen = fold.notna() if self.settings.fold == "all" else fold.notna() & (fold != self.settings.fold)
        return self._scored(self._ids(chosen))

    def eval_ids(self) -> list[str]:
        """Held-out studies, or all with split=all; none with fold=all."""
        fold = self.labels["fold"]
        if self.settings.split == "all":
            return sorted(self.index.index)
        return [] if self.settings.fold == "all" else self._ids(fold == self.settings.fold)

    def scored_ids(self) -> list[str]:
        """The studies of `eval_ids` on which the stage is scored."""
        return self._scored(self.eval_ids())

    def _ids(self, chosen: pd.Series) -> list[str]:
        return sorted(self.index.index[chosen.fillna(False)])

    def _scored(self, ids: list[str]) -> list[str]:
        if not self.segmented:
            return ids
        segmented = set(self.index.index[self.index["segmentation_digest"].notna()])
        return [id for id in ids if id in segmented]

    def read_ids(self) -> list[str]:
        """All studies that the run may read, to train, to predict, or for the baseline of the training folds."""
        training = self.settings.mode == "train" or self.segmented
        trained = self.training_fold_ids() if training else []
        return sorted({*trained, *self.eval_ids()})

    def lengths(self, ids: list[str]) -> list[tuple[str, int]]:
        """(id, slices) of each study."""
        return list(zip(ids, self.index.loc[ids, "slices"].astype(int), strict=True))

    def study(self, id: str) -> Study:
        if id not in self._studies:
            self._studies[id] = self.cache.study(id)
        return self._studies[id]

    @cached_property
    def boxes(self) -> pd.DataFrame:
        """study_boxes by id: x0, y0, x1, y1 in native pixels, z_from, z_to as z_index, ends exclusive; found: false if no box was
        found, and the box is the full frame and all slices."""
        path = self.settings.boxes
        if path is None:
            raise UsageError("no boxes given", do="add boxes=TABLE or boxes=cache")
        columns = list(STUDY_BOX)
        if str(path) == "cache":
            ids = list(self.index.index)
            found = dict(zip(ids, each(lambda id: self.cache.record(id).study_box, ids, self.cache.path), strict=True))
            rows = [{"id": id, **{name: getattr(box, name) for name in columns}} for id, box in found.items() if box]
            table = pd.DataFrame(rows, columns=["id", *columns])
        else:
            table = _read(path, ["id", *columns])
        if table["id"].duplicated().any() or table[columns].isna().any().any():
            raise self._misfit("boxes", "contains a study twice or without a box")
        if wrong := misfit(table, columns, whole=True):
            raise self._misfit("boxes", wrong, expected="whole numbers")
        table = table.set_index("id")
        full = table["source"].eq(FULL_FRAME) if "source" in table.columns else None
        table = table[columns].astype(int)
        known = table.join(self.index[["rows", "columns", "slices"]], how="inner").astype(int)
        low, high = known[["x0", "y0", "z_from"]].to_numpy(), known[["x1", "y1", "z_to"]].to_numpy()
        ends = known[["columns", "rows", "slices"]].to_numpy()
        inside = ((low >= 0) & (low < high) & (high <= ends)).all(axis=1)
        if not inside.all():
            raise self._misfit("boxes", f"the box of {known.index[~inside][0]} lies outside its study")
        if full is None:
            full = pd.Series(((low == 0) & (high == ends)).all(axis=1), known.index)
            full = full.reindex(table.index, fill_value=False)
        return table.assign(found=~full)

    @cached_property
    def _boxes_digest(self) -> str:
        return boxes_digest(self.boxes.reset_index())

    @cached_property
    def without_box(self) -> frozenset[str]:
        """Studies in which no box was found."""
        return frozenset(self.boxes.index[~self.boxes["found"]])

    def crop_boxes(self, ids: list[str]) -> dict[str, tuple[int, int, int, int]] | None:
        """x0, y0, x1, y1 in native pixels by id; None for a variant without crops."""
        if not self.settings.data.crop:
            return None
        self.require_boxes(ids)
        return {id: tuple(row) for id, *row in self.boxes.loc[ids, BOX].itertuples()}

    def require_boxes(self, ids: list[str]) -> None:
        if missing := sorted(set(ids) - set(self.boxes.index)):
            error = self._misfit("boxes", f"{len(missing)} studies have no box, first {missing[0]}")
            if str(self.settings.boxes) == "cache":
                error.do = "run: preprocess set-boxes CACHE TABLE"
            raise error

    def _misfit(self, source: str, what: str, expected: str | None = None) -> UsageError:
        """The error for a table that does not fit the cache."""
        do = FROM_RUNS.format({"boxes": "bbox", "pseudo": "vertebrae"}[source])
        return UsageError(what, where=f"{source}={getattr(self.settings, source)}", expected=expected, do=do)

    @cached_property
    def pseudo_table(self) -> pd.DataFrame:
        """id, z_index, C1..C7, C1_frac..C7_frac."""
        if self.settings.pseudo is None:
            raise UsageError("no pseudo labels given", do="add pseudo=TABLE")
        table = _read(self.settings.pseudo, ["id", "z_index", *LEVELS, *FRACTURES])
        wrong = misfit(table, ["z_index"], least=0, whole=True)
        if wrong := wrong or misfit(table, [*LEVELS, *FRACTURES], 0.0, 1.0, unknown=True):
            raise self._misfit("pseudo", wrong, expected="z_index from 0 on, and values from 0 to 1 or null")
        return table

    @cached_property
    def pseudo(self) -> dict[str, np.ndarray]:
        """id -> (slices, 14) float32: ratios of C1..C7, then fractures, per z_index; NaN where unknown."""
        found = {}
        for id, rows in self.pseudo_table.groupby("id", sort=False):
            if id in self.index.index:
                slices = int(self.index.at[id, "slices"])
                if rows["z_index"].max() >= slices or rows["z_index"].duplicated().any():
                    raise self._misfit("pseudo", f"{id} has a slice twice, or one beyond its {slices}")
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
        """name -> digest of what the weights depend on: the studies trained on, and the sources."""
        return self.cache_digests() | self._source_digests(training=True)

    def cache_digests(self) -> dict[str, str]:
        """The part of `training_digests` that comes from the cache itself."""
        return self._digests(self.training_fold_ids())

    def held_out_digests(self) -> dict[str, str]:
        """The part of `prediction_digests` that comes from the cache itself."""
        return self._digests(self.eval_ids())

    def prediction_digests(self) -> dict[str, str]:
        """name -> digest of what predictions depend on besides the weights."""
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
        files, found = source_files(dict(self.settings)), {}
        for name, path in self.settings.sources(training=training).items():
            if name in self.recorded:
                found[name] = self.recorded[name]
            elif name == "boxes":
                found[name] = self._boxes_digest
            elif path is not None:
                found[name] = str(source_digest(name, files[name]))
        return found

    def require_unchanged(self) -> None:
        """Raises CacheError if a study that the run reads is not the one in the index, on which the digests are based."""
        each(self.cache.require_unchanged, self.read_ids(), self.cache.path)

    def check_fresh(self) -> None:
        """Raises StaleStudy if a study that the run reads was replaced or removed since the cache was opened."""
        each(self.cache.check_fresh, self.read_ids(), self.cache.path)


def open_cache(settings: Settings) -> Cache:
    """The cache of the settings; one in a store with its copy on this machine, where they name one."""
    data, copy = settings.data, None
    if data.store_cache is not None and isinstance(settings.cache, StorePath):
        copy = LocalCopy(data.store_cache, int(data.store_cache_gb * 2**30))
        copy.check()
    return Cache(settings.cache, copy)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    table = read_table(path)
    for column in columns:
        require_known(column, map(str, table.columns), f"has no column {column}", path)
    return table
