"""Stage 2: per-slice area ratios of C1..C7 from slice windows (reference 4.2, 6.3)."""

import numpy as np
import pandas as pd
import torch

from cache_schema import LEVELS
from trainer.data.augment import AugmentParams
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.models import VertebraModel
from trainer.scores.scores import Score, score
from trainer.scores.truth import ratio_truth
from trainer.stages.base import WindowStage, average, backbone, slice_rows
from trainer.stages.losses import Term, vertebra_loss


class VertebraStage(WindowStage):
    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """ratios (frames, 7), mask (frames): 0 on padded slices."""
        shown = z_index >= 0
        ratios = np.where(shown[:, None], self.inputs.study(entry.item.id).vertebra_ratio[z_index], 0)
        return {"ratios": ratios, "mask": shown}

    def model(self) -> VertebraModel:
        return VertebraModel(backbone(self.settings), self.settings.model.dropout, self.settings.model.positional)

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
