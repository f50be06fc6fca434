"""Stage 2: per-slice area ratios of C1..C7 from slice windows (reference 4.2, 6.3)."""

import numpy as np
import pandas as pd
import torch

from cache_schema import LEVELS
from trainer.config import Settings
from trainer.data.draws import Draw
from trainer.data.items import Item, adaptive_stride, windows
from trainer.data.loader import Batch
from trainer.data.order import Place
from trainer.inputs import Inputs
from trainer.losses import Term, vertebra_loss
from trainer.models import VertebraModel
from trainer.stages.base import average, backbone, relative_positions, slice_rows
from trainer.tables.scores import Score, score
from trainer.tables.truth import ratio_truth


def training_windows(settings: Settings, inputs: Inputs, ids: list[str]) -> list[Item]:
    """The windows of stages 2 and 3: a fixed stride, or one by each study's z-range."""
    stride = settings.data.stride
    if stride == "adaptive":
        inputs.require_boxes(ids)
        lengths = inputs.boxes["z_to"] - 1 - inputs.boxes["z_from"]
        stride = {id: adaptive_stride(int(lengths[id])) for id in ids}
    return windows(inputs.lengths(ids), settings.data.frames, stride)


class VertebraStage:
    by_block = False
    overlapping = True

    def __init__(self, settings: Settings, inputs: Inputs):
        self.settings, self.inputs = settings, inputs

    def train_items(self, ids: list[str]) -> list[Item]:
        return training_windows(self.settings, self.inputs, ids)

    def eval_items(self, ids: list[str]) -> list[Item]:
        return windows(self.inputs.lengths(ids), self.settings.data.frames, self.settings.data.eval_stride)

    def targets(self, place: Place, z_index: np.ndarray, draw: Draw) -> dict[str, np.ndarray]:
        """ratios (frames, 7), mask (frames): 0 on padded slices."""
        shown = z_index >= 0
        ratios = np.where(shown[:, None], self.inputs.study(place.item.id).vertebra_ratio[z_index], 0)
        return {"ratios": ratios.round(3), "mask": shown}

    def model(self) -> VertebraModel:
        return VertebraModel(backbone(self.settings), self.settings.model.dropout, self.settings.model.positional)

    def forward(self, model: VertebraModel, batch: Batch) -> torch.Tensor:
        return model(batch.windows(), relative_positions(batch, self.settings))

    def loss(self, outputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, Term]:
        return vertebra_loss(outputs, targets["ratios"], targets["mask"].bool())

    def rows(self, outputs: torch.Tensor, batch: Batch) -> pd.DataFrame:
        frame = slice_rows(batch)
        frame[list(LEVELS)] = outputs.flatten(0, 1).float().cpu().numpy().astype(np.float64)
        return frame

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return average(rows, list(LEVELS))[["id", "z_index", "windows", *LEVELS]]

    def scores(self, table: pd.DataFrame) -> list[Score]:
        held_out, training = (
            ratio_truth(map(self.inputs.study, ids))
            for ids in (self.inputs.eval_ids(segmented=True), self.inputs.train_ids(segmented=True))
        )
        return score("vertebrae", table, held_out, training, variant=self.settings.variant)
