"""Stage 1: a 2D box around C1..C7 and whether one is there, from three consecutive slices (reference 4.1, 6.1)."""

import numpy as np
import pandas as pd
import torch

from cache_schema.columns import BOX
from cache_schema.errors import UsageError
from trainer.data.augment import AugmentParams
from trainer.data.items import Item, triplets
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.models import BoxModel
from trainer.runs.inputs import Inputs
from trainer.scores.scores import Score, score
from trainer.scores.truth import box_truth, union_box
from trainer.settings.settings import Settings
from trainer.stages.base import backbone
from trainer.stages.losses import Term, bbox_loss


class BoxStage:
    by_block = True
    overlapping = False

    def __init__(self, settings: Settings, inputs: Inputs):
        self.settings, self.inputs = settings, inputs
        if settings.data.crop:
            raise UsageError("stage bbox looks at whole slices", do="leave data.crop out")

    def train_items(self, ids: list[str]) -> list[Item]:
        return triplets(self.inputs.lengths(ids), every=1)

    def eval_items(self, ids: list[str]) -> list[Item]:
        return triplets(self.inputs.lengths(ids), every=3)

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """box (4,) in units of the image's side, has_box (): 0 too where the augmentation moved the box out of the image."""
        study, size = self.inputs.study(entry.item.id), params.size
        box = union_box(study.slice_box[z_index[z_index >= 0]])
        if box is None:
            return {"box": np.zeros(4), "has_box": np.array(0)}
        side = np.array([study.record.columns, study.record.rows] * 2)
        moved = params.move_box(box / side * size) / size
        return {"box": moved, "has_box": np.array(float(moved[2] > moved[0] and moved[3] > moved[1]))}

    def model(self) -> BoxModel:
        return BoxModel(backbone(self.settings))

    def forward(self, model: BoxModel, batch: Batch) -> dict[str, torch.Tensor]:
        return model(batch.images)

    def loss(self, outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, Term]:
        return bbox_loss(outputs["box"], outputs["presence"], targets["box"], targets["has_box"])

    def rows(self, outputs: dict[str, torch.Tensor], batch: Batch) -> pd.DataFrame:
        """Boxes in native pixels, clipped to the frame, at the middle slice of each triplet."""
        boxes = outputs["box"].float().clamp(0, 1).cpu().numpy().astype(np.float64)
        records = [self.inputs.index.loc[entry.item.id] for entry in batch.entries]
        boxes *= np.array([[r["columns"], r["rows"]] * 2 for r in records], float)
        items = [entry.item for entry in batch.entries]
        frame = pd.DataFrame({"id": [item.id for item in items], "z_index": [item.middle for item in items]})
        frame[BOX] = boxes
        frame["has_box"] = outputs["presence"].float().sigmoid().cpu().numpy().astype(np.float64)
        return frame[[entry.counts for entry in batch.entries]]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.sort_values(["id", "z_index"], kind="stable").reset_index(drop=True)

    def scores(self, table: pd.DataFrame) -> list[Score]:
        held_out, training = (
            box_truth(map(self.inputs.study, ids))
            for ids in (self.inputs.eval_ids(segmented=True), self.inputs.train_ids(segmented=True))
        )
        return score("bbox", table, held_out, training, variant=self.settings.variant)
