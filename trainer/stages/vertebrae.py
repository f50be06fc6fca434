"""Stage 2: per-slice area ratios of C1..C7 from slice windows (reference 4.2, 6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema import LEVELS
from trainer.scores.score_terms import vertebra_parts
from trainer.scores.scores import Measure
from trainer.scores.truth import ratio_truth
from trainer.settings.settings import Settings
from trainer.stages.base import WindowStage, average, backbone, slice_rows, to_numpy
from trainer.tables.ratios import vertebra_ratios
from trainer.tables.recipes import OF_VERTEBRAE

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import VertebraModel
    from trainer.stages.losses import Term


class VertebraStage(WindowStage):
    name, order, version = "vertebrae", 2, 3
    learns_from = "segmentations"
    columns, tables = ("windows", *LEVELS), OF_VERTEBRAE
    measure = Measure("weighted_squared_error", "training curve", vertebra_parts)
    truth, pool = staticmethod(ratio_truth), staticmethod(vertebra_ratios)
    legend = "bars: target ratios of C1..C7 at this slice"

    @classmethod
    def images_a_pass(cls, settings: Settings, micro_batch: int) -> int:
        """The CNN takes one window at a time (reference 6.3)."""
        return settings.data.frames // 3

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """ratios (frames, 7); mask (frames,), 0 in padding."""
        ratios, mask = self.inputs.study(entry.item.id).vertebra_ratio, z_index >= 0
        assert ratios is not None, "the study is segmented"
        return {"ratios": np.where(mask[:, None], ratios[z_index], 0), "mask": mask}

    def model(self) -> VertebraModel:
        from trainer.models import VertebraModel

        return VertebraModel(backbone(self.settings), self.settings.model.dropout, self.settings.model.positional)

    def loss(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Term]:
        from trainer.stages.losses import vertebra_loss

        return vertebra_loss(outputs, targets["ratios"], targets["mask"].bool())

    def rows(self, outputs: Tensor, batch: Batch) -> pd.DataFrame:
        frame = slice_rows(batch)
        frame[list(LEVELS)] = to_numpy(outputs.flatten(0, 1))
        return frame

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return average(rows, list(LEVELS))[["id", "z_index", "windows", *LEVELS]]
