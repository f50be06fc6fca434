"""What a stage is: one class that says everything about it, and computes its items, targets, loss, tables and scores.

A stage's file can be imported without torch: methods that need torch or a network import it themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from cache_schema import TARGETS, Cache, Study
from cache_schema.tables import read_table
from trainer.data.items import Item, adaptive_stride, middles, windows
from trainer.runs.inputs import Inputs
from trainer.scores.scores import Measure, Score, score
from trainer.settings.settings import Settings
from trainer.tables.pooling import mean_over_runs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import Backbone
    from trainer.stages.losses import Term


class Stage:
    """Built from (settings, inputs). The class attributes are facts that need no instance."""

    name: ClassVar[str]
    """as in `stage=`; the file, or the entry point, has the same name"""
    order: ClassVar[int] = 0
    """a stage comes after those whose tables or weights it takes"""
    version: ClassVar[int] = 1
    """raised when the stage computes something else from the same inputs: finished runs of another version are stale"""
    config: ClassVar[Path]
    """YAML of the settings common to all variants and, under `variants`, of each; the first is the default"""
    learns_from: ClassVar[Literal["segmentations", "pseudo_labels", "labels"]]
    """what it trains on and is scored on: masks, and so segmented studies only; a table of pseudo labels; the studies' labels"""
    items: ClassVar[Literal["triplets", "windows", "studies"]]
    """triplets: neighbours are shuffled by block. windows: they overlap in prediction, where the CNN sees each triplet once.
    studies: one item a study, of any length"""
    needs_boxes: ClassVar[bool] = False
    """whether every variant works on study boxes; others do where data.crop or data.stride ask for them"""
    backbone: ClassVar[str | None] = None
    """the stage whose finished CNN it freezes"""
    columns: ClassVar[tuple[str, ...]]
    """numbers in its predictions, beside id and, but for studies, z_index"""
    probabilities: ClassVar[tuple[str, ...]] = ()
    """further columns, of numbers from 0 to 1"""
    tables: ClassVar[tuple[str, ...]] = ()
    """in RUNS/tables, made from its held-out predictions, each from the one before it (trainer.tables.make)"""
    measure: ClassVar[Measure]
    """its score and baseline"""
    seconds: ClassVar[float] = 3600
    """of one run on one GPU, where configs/costs.yaml does not say: the longest of a plan go first"""
    legend: ClassVar[str] = ""
    """what targets look like in a contact sheet of trainer.look"""

    def __init__(self, settings: Settings, inputs: Inputs) -> None:
        self.settings, self.inputs = settings, inputs

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Columns that name a row of its predictions."""
        return ("id",) if cls.items == "studies" else ("id", "z_index")

    @classmethod
    def images_a_pass(cls, settings: Settings, micro_batch: int) -> int:
        """How many images one pass of the CNN takes in training."""
        triplets = {"triplets": 1, "windows": settings.data.frames // 3, "studies": settings.model.chunk}[cls.items]
        return triplets if cls.items == "studies" else micro_batch * triplets

    @classmethod
    def truth(cls, studies: Iterable[Study]) -> pd.DataFrame:
        """Of a stage that learns from segmentations: what its predictions of these studies are held against."""
        raise NotImplementedError

    @classmethod
    def known(cls, cache: Cache, pseudo: Path) -> pd.DataFrame:
        """What predictions of a cache's studies are held against, whichever it learns from; no rows without pseudo labels."""
        if cls.learns_from == "segmentations":
            segmented = cache.index["segmentation_digest"].notna()
            return cls.truth(map(cache.study, cache.index.loc[segmented, "id"]))
        if cls.learns_from == "labels":
            return cache.labels[["id", *TARGETS]]
        return read_table(pseudo) if pseudo.is_file() else pd.DataFrame(columns=["id"])

    @classmethod
    def pool(cls, predictions: list[pd.DataFrame]) -> pd.DataFrame:
        """Predictions of several runs -> one row a key: runs of other seeds are averaged."""
        keys = list(cls.keys())
        own = [*keys, *cls.columns, *cls.probabilities]
        return mean_over_runs([frame[own] for frame in predictions], keys)

    def train_items(self, ids: list[str]) -> list[Item]:
        raise NotImplementedError

    def eval_items(self, ids: list[str]) -> list[Item]:
        """Items that cover every slice a prediction is due for."""
        raise NotImplementedError

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """One training item's targets, as its augmentation moves them."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of a batch, whose images may have been replaced by their features."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Mapping[str, torch.Tensor]) -> dict[str, Term]:
        raise NotImplementedError

    def rows(self, outputs: Any, batch: Batch) -> pd.DataFrame:
        """A batch's predictions, one row for each slice or study, padding and all."""
        raise NotImplementedError

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """All rows of a prediction -> the stage's table, sorted: one row a slice or study."""
        return rows.sort_values(list(self.keys()), kind="stable").reset_index(drop=True)

    def scores(self, table: pd.DataFrame) -> list[Score]:
        """On those studies of the table that have a truth, beside the baseline of the training folds."""
        if self.learns_from == "pseudo_labels" and self.settings.pseudo is None:
            return []
        held_out, training = map(self._known, (self.inputs.scored_ids(), self.inputs.train_ids()))
        return score(type(self), table, held_out, training, variant=self.settings.variant)

    def _known(self, ids: list[str]) -> pd.DataFrame:
        if self.learns_from == "segmentations":
            return self.truth(map(self.inputs.study, ids))
        table = self.inputs.pseudo_table if self.learns_from == "pseudo_labels" else self.inputs.label_table
        return table[table["id"].isin(ids)]


class WindowStage(Stage):
    """Slice windows of a study, which overlap in prediction."""

    items = "windows"

    def train_items(self, ids: list[str]) -> list[Item]:
        """At a fixed stride, or at one by each study's z-range."""
        stride = self.settings.data.stride
        if stride == "adaptive":
            self.inputs.require_boxes(ids)
            lengths = self.inputs.boxes["z_to"] - 1 - self.inputs.boxes["z_from"]
            stride = {id: adaptive_stride(int(lengths[id])) for id in ids}
        return windows(self.inputs.lengths(ids), self.settings.data.frames, stride)

    def eval_items(self, ids: list[str]) -> list[Item]:
        return windows(self.inputs.lengths(ids), self.settings.data.frames, self.settings.data.eval_stride)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch.windows(), relative_positions(batch, self.settings))


def backbone(settings: Settings) -> Backbone:
    """With pretrained weights where training starts from them; a prediction loads its own."""
    from trainer.models import Backbone

    model, starts = settings.model, settings.mode == "train"
    return Backbone(model.name, model.pretrained and starts, model.weights_file if starts else None)


def relative_positions(batch: Batch, settings: Settings) -> torch.Tensor | None:
    """(items, 3 * triplets) in [0, 1], 0 at the head; None where the model counts by index in the window."""
    import torch

    from trainer.data.loader import to_device

    if settings.model.positional == "index":
        return None
    rows = [
        np.maximum(z, 0) / max(1, entry.item.slices - 1) for z, entry in zip(batch.z_index, batch.entries, strict=True)
    ]
    return to_device(torch.from_numpy(np.float32(rows)), batch.images.device)


def numbers(output: torch.Tensor) -> np.ndarray:
    """A network's output, of any shape -> float64, as predictions are written."""
    return output.float().cpu().numpy().astype(np.float64)


def counted(frame: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    """Of one row an item, those that are not repeats at the end of an evaluation."""
    return frame[[entry.counts for entry in batch.entries]]


def slice_rows(batch: Batch, every: int = 1) -> pd.DataFrame:
    """id and z_index of each shown slice (every=3: of each triplet's middle slice), in the batch's order; -1 where padded or repeated."""
    shown = [middles(z) if every == 3 else z for z in batch.z_index]
    own = [z if entry.counts else np.full_like(z, -1) for z, entry in zip(shown, batch.entries, strict=True)]
    ids = np.repeat([entry.item.id for entry in batch.entries], [len(z) for z in own])
    return pd.DataFrame({"id": ids, "z_index": np.concatenate(own)})


def average(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Rows with z_index >= 0 -> the mean per (id, z_index) with `windows`, how many there were. Independent of the rows' order."""
    kept = rows[rows["z_index"] >= 0].sort_values(["id", "z_index", *columns], kind="stable")
    grouped = kept.groupby(["id", "z_index"], sort=True)
    table = grouped[columns].mean()
    table.insert(0, "windows", grouped.size())
    return table.reset_index()
