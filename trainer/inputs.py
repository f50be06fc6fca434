"""What a run reads: the cache, its labels and folds, and the tables it was given; with the digests that make a run what it is.

Nothing here imports torch.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from cache_schema.tables import read_table, table_meta
from safetensors import safe_open

from cache_schema import LEVELS, TARGETS, Cache, Study
from cache_schema.errors import StaleStudy, UsageError
from trainer.config import Settings, nearest
from trainer.tables.boxes import BOX
from trainer.tables.pseudo import FRACTURES


class Inputs:
    """Opened once per process. Raises UsageError for what the settings name and is not there."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.cache = Cache(settings.cache)
        self.index = self.cache.index.set_index("id", drop=False)
        labels = self.cache.labels
        if labels is None:
            raise UsageError("the cache holds no labels", where=settings.cache, do="run: preprocess labels CACHE CSV")
        self.labels = labels.set_index("id").reindex(self.index.index)
        if settings.fold != "all" and settings.fold not in set(self.labels["fold"].dropna().astype(int)):
            folds = sorted(set(self.labels["fold"].dropna().astype(int)))
            raise UsageError(
                f"no study is in fold {settings.fold}", where=settings.cache, expected=f"fold={folds} or all"
            )

    def train_ids(self, *, segmented: bool = False) -> list[str]:
        """Studies outside the held-out fold; with fold=all every study."""
        fold = self.labels["fold"]
        chosen = fold.notna() if self.settings.fold == "all" else fold.notna() & (fold != self.settings.fold)
        return self._ids(chosen, segmented)

    def eval_ids(self, *, segmented: bool = False) -> list[str]:
        """Held-out studies, or all with split=all; none where fold=all holds nothing out."""
        fold = self.labels["fold"]
        if self.settings.split == "all":
            return self._ids(pd.Series(True, index=fold.index), segmented)
        if self.settings.fold == "all":
            return []
        return self._ids(fold == self.settings.fold, segmented)

    def _ids(self, chosen: pd.Series, segmented: bool) -> list[str]:
        if segmented:
            chosen = chosen & self.index["segmentation_digest"].notna()
        return sorted(self.index.index[chosen.fillna(False)])

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
        """study_boxes by id: x0 y0 x1 y1 z_from z_to, native pixels and z_index, exclusive ends."""
        path = self.settings.boxes
        if path is None:
            raise UsageError("no boxes given", do="add boxes=TABLE or boxes=cache")
        columns = [*BOX, "z_from", "z_to"]
        if str(path) == "cache":
            found = {id: self.cache.record(id).study_box for id in self.index.index}
            rows = [{"id": id, **{name: getattr(box, name) for name in columns}} for id, box in found.items() if box]
            table = pd.DataFrame(rows, columns=["id", *columns])
        else:
            table = _read(path, ["id", *columns])
        return table.set_index("id")[columns].astype(int)

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
                do="make the table again",
            )

    @cached_property
    def pseudo_table(self) -> pd.DataFrame:
        """id, z_index, C1..C7, C1_frac..C7_frac."""
        return _read(self.settings.pseudo, ["id", "z_index", *LEVELS, *FRACTURES])

    @cached_property
    def pseudo(self) -> dict[str, np.ndarray]:
        """id -> (slices, 14) float32: C1..C7 ratios then fractures per z_index; NaN where unknown."""
        found = {}
        for id, rows in self.pseudo_table.groupby("id", sort=False):
            if id in self.index.index:
                values = np.full((int(self.index.at[id, "slices"]), 14), np.nan, np.float32)
                values[rows["z_index"].to_numpy()] = rows[[*LEVELS, *FRACTURES]].to_numpy(np.float32)
                found[id] = values
        return found

    def label_row(self, id: str) -> np.ndarray:
        """(8,) float32: patient_overall, C1..C7; NaN where unknown."""
        return self._label_values[self._label_place[id]]

    @cached_property
    def _label_values(self) -> np.ndarray:
        return self.labels[list(TARGETS)].astype("Float32").to_numpy(np.float32, na_value=np.nan)

    @cached_property
    def _label_place(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.labels.index)}

    def digests(self) -> dict[str, str]:
        """What this run depends on, by name. The same digests and settings make the same run."""
        settings = self.settings
        folds = self.labels["fold"].astype("Int64")
        parts = {
            "pixel_hash": self.cache.pixel_hash,
            "studies": _digest(zip(self.index["id"], self.index["content_digest"], folds, strict=True)),
        }
        if settings.stage in ("bbox", "vertebrae"):
            parts["segmentations"] = _digest(zip(self.index["id"], self.index["segmentation_digest"], strict=True))
        if settings.stage == "study_fracture":
            parts["labels"] = _digest(self.labels[list(TARGETS)].astype("Int64").reset_index().itertuples(index=False))
        for name in ("boxes", "pseudo"):
            path = getattr(settings, name)
            if path is not None and str(path) != "cache":
                parts[name] = table_meta(path)["digest"]
            elif path is not None:
                parts[name] = _digest(self.boxes.reset_index().itertuples(index=False))
        if settings.backbone is not None:
            parts["backbone"] = weights_metadata(settings.backbone / "model.safetensors")["key"]
        return parts

    def check_fresh(self) -> None:
        """A study replaced since this run opened the cache stops it (design 3)."""
        now = Cache(self.settings.cache).index.set_index("id")["content_digest"]
        then = self.index["content_digest"]
        changed = [id for id in then.index if now.get(id) != then[id]]
        if changed:
            raise StaleStudy("was replaced in the cache while in use", where=changed[0], do="start the run again")


def weights_metadata(path: Path) -> dict[str, str]:
    """What a weights file says about itself; read without torch."""
    if not path.is_file():
        raise UsageError("no finished run", where=path.parent, expected="a folder with model.safetensors")
    with safe_open(path, framework="np") as file:
        return file.metadata() or {}


def _digest(rows: object) -> str:
    text = "\n".join(json.dumps([None if pd.isna(value) else str(value) for value in row]) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    table = read_table(path)
    for column in columns:
        if column not in table.columns:
            raise UsageError(f"has no column {column}", where=path, do=nearest(column, map(str, table.columns)))
    return table
