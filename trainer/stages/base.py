"""The protocol behind which each stage lives in one file: items, targets, loss, prediction table, scores."""

from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn

from trainer.data.augment import AugmentParams
from trainer.data.items import Item, adaptive_stride, middles, windows
from trainer.data.loader import Batch, to_device
from trainer.data.order import ScheduledItem
from trainer.models import Backbone
from trainer.runs.inputs import Inputs
from trainer.scores.scores import Score
from trainer.settings.settings import Settings
from trainer.stages.losses import Term


class Stage(Protocol):
    """Built from (settings, inputs). Its version, by which finished runs become stale, stands in `trainer.runs.identity`."""

    by_block: ClassVar[bool]
    """whether training items overlap so much that they are shuffled by block"""
    overlapping: ClassVar[bool]
    """whether the items of a prediction are windows that share triplets"""

    def __init__(self, settings: Settings, inputs: Inputs) -> None: ...

    def train_items(self, ids: list[str]) -> list[Item]: ...

    def eval_items(self, ids: list[str]) -> list[Item]:
        """Items that cover every slice a prediction is due for."""
        ...

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """One training item's targets, as its augmentation moves them."""
        ...

    def model(self) -> nn.Module: ...

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of a batch, whose images may have been replaced by their features."""
        ...

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, Term]: ...

    def rows(self, outputs: Any, batch: Batch) -> pd.DataFrame:
        """A batch's predictions, one row for each slice or study, padding and all."""
        ...

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """All rows of a prediction -> the stage's table, sorted: one row a slice or study."""
        ...

    def scores(self, table: pd.DataFrame) -> list[Score]:
        """On those studies of the table that have a truth, beside the baseline of the training folds."""
        ...


class WindowStage:
    """What stages 2 and 3 have in common: windows of a study's slices, which overlap in prediction."""

    by_block = False
    overlapping = True

    def __init__(self, settings: Settings, inputs: Inputs):
        self.settings, self.inputs = settings, inputs

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
    model, starts = settings.model, settings.mode == "train"
    return Backbone(model.name, model.pretrained and starts, model.weights_file if starts else None)


def relative_positions(batch: Batch, settings: Settings) -> torch.Tensor | None:
    """(items, 3 * triplets) in [0, 1], 0 at the head; None where the model counts by index in the window."""
    if settings.model.positional == "index":
        return None
    rows = [
        np.maximum(z, 0) / max(1, entry.item.slices - 1) for z, entry in zip(batch.z_index, batch.entries, strict=True)
    ]
    return to_device(torch.from_numpy(np.float32(rows)), batch.images.device)


def slice_rows(batch: Batch, every: int = 1) -> pd.DataFrame:
    """id and z_index of each shown slice (every=3: of each triplet's middle slice), in the batch's order; -1 where padded or repeated."""
    shown = [middles(z) if every == 3 else z for z in batch.z_index]
    counted = [z if entry.counts else np.full_like(z, -1) for z, entry in zip(shown, batch.entries, strict=True)]
    ids = np.repeat([entry.item.id for entry in batch.entries], [len(z) for z in counted])
    return pd.DataFrame({"id": ids, "z_index": np.concatenate(counted)})


def average(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Rows with z_index >= 0 -> the mean per (id, z_index) with `windows`, how many there were. Independent of the rows' order."""
    kept = rows[rows["z_index"] >= 0].sort_values(["id", "z_index", *columns], kind="stable")
    grouped = kept.groupby(["id", "z_index"], sort=True)
    table = grouped[columns].mean()
    table.insert(0, "windows", grouped.size())
    return table.reset_index()
