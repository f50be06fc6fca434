"""The base class of all stages. A stage defines its items, targets, network, loss, prediction table and scores.

A stage's file can be imported without torch: methods that need torch or a network import it themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    from torch import Tensor

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import Backbone, Network
    from trainer.stages.losses import Term
    from trainer.tables.recipes import Recipe


class Stage(ABC):
    """Built from (settings, inputs). The class attributes are facts that need no instance."""

    name: ClassVar[str]
    """the value of `stage=`, and the name of its file or entry point"""
    order: ClassVar[int] = 0
    """position in the pipeline, after the stages whose tables or weights it takes"""
    version: ClassVar[int] = 1
    """raise it when the same inputs give other results: finished runs of another version are stale"""
    config: ClassVar[Path | None] = None
    """YAML with the settings of all variants and, under `variants`, of each; the first variant is the default.
    None: configs/<name>.yaml of this project"""
    learns_from: ClassVar[Literal["segmentations", "pseudo_labels", "labels"]]
    """what it trains on and is scored on: segmented studies' masks, a table of pseudo labels, or the studies' labels"""
    items: ClassVar[Literal["triplets", "windows", "studies"]]
    """triplets: shuffled in blocks of neighbours. windows: overlap in prediction, which encodes each triplet once.
    studies: one item of any length per study"""
    needs_boxes: ClassVar[bool] = False
    """whether every variant needs study boxes; others need them if data.crop or data.stride=adaptive is set"""
    backbone: ClassVar[str | None] = None
    """the stage whose trained CNN it freezes"""
    columns: ClassVar[tuple[str, ...]]
    """numeric columns of its predictions, beside its keys"""
    probabilities: ClassVar[tuple[str, ...]] = ()
    """further columns, with values in [0, 1]"""
    tables: ClassVar[Mapping[str, Recipe]] = {}
    """tables in RUNS/tables by name, the first made from its held-out predictions, each further one from the previous one"""
    measure: ClassVar[Measure]
    """its score and baseline"""
    seconds: ClassVar[float] = 3600
    """cost of a run on one GPU if configs/costs.yaml states none"""
    legend: ClassVar[str] = ""
    """explains the targets in a contact sheet of trainer.look"""

    def __init__(self, settings: Settings, inputs: Inputs) -> None:
        self.settings, self.inputs = settings, inputs

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Columns that identify a row of its predictions."""
        return ("id",) if cls.items == "studies" else ("id", "z_index")

    @classmethod
    def images_a_pass(cls, settings: Settings, micro_batch: int) -> int:
        """Images in one training pass of the CNN."""
        if cls.items == "studies":
            return settings.model.chunk
        return micro_batch * (1 if cls.items == "triplets" else settings.data.frames // 3)

    @classmethod
    def truth(cls, studies: Iterable[Study]) -> pd.DataFrame:
        """The ground truth of segmented studies, for a stage that learns from segmentations."""
        raise NotImplementedError

    @classmethod
    def known(cls, cache: Cache, pseudo: Path) -> pd.DataFrame:
        """The ground truth of a cache's studies. pseudo: file of pseudo labels. No rows without labels or this file."""
        none = pd.DataFrame(columns=["id"])
        if cls.learns_from == "segmentations":
            segmented = cache.index["segmentation_digest"].notna()
            return cls.truth(map(cache.study, cache.index.loc[segmented, "id"]))
        if cls.learns_from == "labels":
            return none if cache.labels is None else cache.labels[["id", *TARGETS]]
        return read_table(pseudo) if pseudo.is_file() else none

    @classmethod
    def pool(cls, predictions: list[pd.DataFrame]) -> pd.DataFrame:
        """Predictions of several runs -> their mean, one row per key."""
        keys = list(cls.keys())
        own = [*keys, *cls.columns, *cls.probabilities]
        return mean_over_runs([frame[own] for frame in predictions], keys)

    @abstractmethod
    def train_items(self, ids: list[str]) -> list[Item]: ...

    @abstractmethod
    def eval_items(self, ids: list[str]) -> list[Item]:
        """Items that cover every slice to predict."""

    @abstractmethod
    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """One training item's targets, under its augmentation. Each array has the same shape for all items."""

    @abstractmethod
    def model(self) -> Network: ...

    @abstractmethod
    def forward(self, model: Any, batch: Batch) -> Any:
        """The network's outputs for a batch of images, or of their features. Any: each stage has its own of both."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Term]: ...

    @abstractmethod
    def rows(self, outputs: Any, batch: Batch) -> pd.DataFrame:
        """A batch's predictions, one row per slice or study, padding included."""

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """All rows of a prediction -> the stage's sorted table, one row per slice or study."""
        return rows.sort_values(list(self.keys()), kind="stable").reset_index(drop=True)

    def scores(self, table: pd.DataFrame) -> list[Score]:
        """Scores of the studies with ground truth, beside the baseline of the training folds."""
        if self.learns_from == "pseudo_labels" and self.settings.pseudo is None:
            return []
        held_out, training = map(self._known, (self.inputs.scored_ids(), self.inputs.train_ids()))
        return score(type(self), table, held_out, training, variant=self.settings.variant)

    def _known(self, ids: list[str]) -> pd.DataFrame:
        """As `known`, from the run's inputs."""
        if self.learns_from == "segmentations":
            return self.truth(map(self.inputs.study, ids))
        table = self.inputs.pseudo_table if self.learns_from == "pseudo_labels" else self.inputs.label_table
        return table[table["id"].isin(ids)]


class WindowStage(Stage):
    """A stage of slice windows. They overlap in prediction."""

    items = "windows"

    def train_items(self, ids: list[str]) -> list[Item]:
        """At a fixed stride, or at one adapted to each study's z-range."""
        data, strides = self.settings.data, {}
        if data.stride == "adaptive":
            self.inputs.require_boxes(ids)
            lengths = self.inputs.boxes["z_to"] - 1 - self.inputs.boxes["z_from"]
            strides = {id: adaptive_stride(int(lengths[id])) for id in ids}
        return windows(self.inputs.lengths(ids), data.frames, strides if data.stride == "adaptive" else data.stride)

    def eval_items(self, ids: list[str]) -> list[Item]:
        return windows(self.inputs.lengths(ids), self.settings.data.frames, self.settings.data.eval_stride)

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch.windows(), relative_positions(batch, self.settings))


def backbone(settings: Settings) -> Backbone:
    """A new CNN, with pretrained weights in training only: a prediction loads the run's own."""
    from trainer.models import Backbone

    model, starts = settings.model, settings.mode == "train"
    return Backbone(model.name, model.pretrained and starts, model.weights_file if starts else None)


def relative_positions(batch: Batch, settings: Settings) -> Tensor | None:
    """(items, 3 * triplets) in [0, 1], 0 at the head; None for model.positional=index."""
    import torch

    from trainer.data.loader import to_device

    if settings.model.positional == "index":
        return None
    lengths = [max(1, entry.item.slices - 1) for entry in batch.entries]
    rows = [np.maximum(z, 0) / length for z, length in zip(batch.z_index, lengths, strict=True)]
    return to_device(torch.from_numpy(np.array(rows, np.float32)), batch.images.device)


def to_numpy(output: Tensor) -> np.ndarray:
    """A network's output, of any shape -> float64, as in prediction tables."""
    return output.float().cpu().numpy().astype(np.float64)


def counted(frame: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    """One row per item -> the rows of items that count: not the repeats that fill an evaluation's last batch."""
    return frame[[entry.counts for entry in batch.entries]]


def slice_rows(batch: Batch, every: int = 1) -> pd.DataFrame:
    """id and z_index of each slice (every=3: of each triplet's middle slice) in the batch's order; z_index -1 in padding and repeats."""
    shown = [middles(z) if every == 3 else z for z in batch.z_index]
    own = [z if entry.counts else np.full_like(z, -1) for z, entry in zip(shown, batch.entries, strict=True)]
    ids = np.repeat([entry.item.id for entry in batch.entries], [len(z) for z in own])
    return pd.DataFrame({"id": ids, "z_index": np.concatenate(own)})


def average(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Rows with z_index >= 0 -> their mean per (id, z_index), and `windows`, their number. The rows' order does not matter."""
    kept = rows[rows["z_index"] >= 0].sort_values(["id", "z_index", *columns], kind="stable")
    grouped = kept.groupby(["id", "z_index"], sort=True)
    table = grouped[columns].mean()
    table.insert(0, "windows", grouped.size())
    return table.reset_index()
