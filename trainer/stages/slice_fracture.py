"""Stage 3: vertebra ratios and fractures of every triplet, trained on pseudo labels (reference 4.3, 6.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema import LEVELS
from cache_schema.columns import FRACTURES
from cache_schema.errors import UsageError
from trainer.data.items import Item, middles
from trainer.process.command import warn_once
from trainer.runs.inputs import FROM_RUNS
from trainer.scores.score_terms import slice_fracture_parts
from trainer.scores.scores import Measure
from trainer.stages.base import WindowStage, average, backbone, slice_rows, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import SliceFractureModel
    from trainer.stages.losses import Term


class SliceFractureStage(WindowStage):
    name, order, version = "slice_fracture", 3, 3
    learns_from = "pseudo_labels"
    columns = (*LEVELS, *FRACTURES, "any_frac")
    measure = Measure("weighted_squared_error", "training constants", slice_fracture_parts, 3, ("any", *LEVELS))
    legend = "grey bars: target ratios of C1..C7 at this slice; red: target fractures; ?: unknown, not trained on"

    def train_items(self, ids: list[str]) -> list[Item]:
        missing = sorted(set(ids) - set(self.inputs.pseudo))
        if missing:
            line = f"{len(missing)} studies have no pseudo labels, first {missing[0]}"
            raise UsageError(line, where=f"pseudo={self.settings.pseudo}", do=FROM_RUNS.format("vertebrae"))
        short = [id for id in ids if np.isnan(self.inputs.pseudo[id][:, : len(LEVELS)]).any()]
        if short:
            warn_once(
                f"{len(short)} studies lack pseudo labels of some slices, which the loss ignores, first {min(short)}"
            )
        return super().train_items(ids)

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """ratios and fractures (triplets, 7) at the middle slices, NaN where unknown; mask (triplets,), 0 in padding."""
        middle = middles(z_index)
        values = self.inputs.pseudo[entry.item.id][middle]
        return {"ratios": values[:, :7], "fractures": values[:, 7:], "mask": middle >= 0}

    def model(self) -> SliceFractureModel:
        from trainer.models import SliceFractureModel

        return SliceFractureModel(backbone(self.settings), self.settings.model.dropout, self.settings.model.positional)

    def loss(self, outputs: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Term]:
        from trainer.stages.losses import slice_fracture_loss

        return slice_fracture_loss(outputs, targets["ratios"], targets["fractures"], targets["mask"].bool())

    def rows(self, outputs: dict[str, Tensor], batch: Batch) -> pd.DataFrame:
        """Predictions at the middle slice of each triplet."""
        frame = slice_rows(batch, every=3)
        for columns, name in ((LEVELS, "vertebra"), (FRACTURES, "fracture")):
            frame[list(columns)] = to_numpy(outputs[name].flatten(0, 1))
        frame["any_frac"] = to_numpy(outputs["any"].flatten())
        return frame

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return average(rows, list(self.columns)).drop(columns="windows")
