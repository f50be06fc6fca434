"""Stage 1: a 2D box around C1..C7 and its presence, from three consecutive slices (reference 4.1, 6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema.columns import BOX
from cache_schema.errors import UsageError
from trainer.data.items import Item, triplets
from trainer.runs.inputs import Inputs
from trainer.scores.score_terms import bbox_parts
from trainer.scores.scores import Measure
from trainer.scores.truth import box_truth, union_box
from trainer.settings.settings import Settings
from trainer.stages.base import Stage, backbone, counted, to_numpy
from trainer.tables.recipes import OF_BBOX

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import BoxModel
    from trainer.stages.losses import Term


class BoxStage(Stage):
    name, order, version = "bbox", 1, 3
    learns_from, items = "segmentations", "triplets"
    columns, probabilities, tables = tuple(BOX), ("has_box",), OF_BBOX
    measure = Measure("iou", "training mean box", bbox_parts)
    truth = staticmethod(box_truth)
    legend = "yellow: the target box, augmented like the image; it is the union over the three slices"

    def __init__(self, settings: Settings, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        if settings.data.crop:
            raise UsageError("stage bbox reads whole slices", do="do not set data.crop")

    def train_items(self, ids: list[str]) -> list[Item]:
        return triplets(self.inputs.lengths(ids), every=1)

    def eval_items(self, ids: list[str]) -> list[Item]:
        return triplets(self.inputs.lengths(ids), every=3)

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """box (4,) in units of the image's side; has_box (), also 0 if the augmentation moved the box out of the image."""
        study, size = self.inputs.study(entry.item.id), params.size
        assert study.slice_box is not None, "the study is segmented"
        box = union_box(study.slice_box[z_index[z_index >= 0]])
        if box is None:
            return {"box": np.zeros(4), "has_box": np.array(0)}
        side = np.array([study.record.columns, study.record.rows] * 2)
        moved = params.move_box(box / side * size) / size
        return {"box": moved, "has_box": np.array(float(moved[2] > moved[0] and moved[3] > moved[1]))}

    def model(self) -> BoxModel:
        from trainer.models import BoxModel

        return BoxModel(backbone(self.settings))

    def forward(self, model: BoxModel, batch: Batch) -> dict[str, Tensor]:
        return model(batch.images)

    def loss(self, outputs: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Term]:
        from trainer.stages.losses import bbox_loss

        return bbox_loss(outputs["box"], outputs["presence"], targets["box"], targets["has_box"])

    def rows(self, outputs: dict[str, Tensor], batch: Batch) -> pd.DataFrame:
        """Boxes in native pixels, clipped to the slice, at the middle slice of each triplet."""
        items = [entry.item for entry in batch.entries]
        frame = pd.DataFrame({"id": [item.id for item in items], "z_index": [item.middle for item in items]})
        sides = self.inputs.index.loc[frame["id"], ["columns", "rows"] * 2].to_numpy(float)
        frame[BOX] = to_numpy(outputs["box"]).clip(0, 1) * sides
        frame["has_box"] = to_numpy(outputs["presence"].float().sigmoid())
        return counted(frame, batch)
