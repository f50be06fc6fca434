"""Stage 4: eight probabilities a study over a frozen stage-3 backbone (reference 4.4, 6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema import TARGETS
from trainer.data.items import Item, whole_studies
from trainer.runs.files import MODEL_FILE
from trainer.scores.score_terms import study_fracture_parts
from trainer.scores.scores import Measure
from trainer.settings.registry import CONFIGS
from trainer.stages.base import Stage, counted, numbers

if TYPE_CHECKING:
    import torch

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import StudyFractureModel
    from trainer.stages.losses import Term


class StudyFractureStage(Stage):
    name, order, version, config = "study_fracture", 4, 3, CONFIGS / "study_fracture.yaml"
    learns_from, items = "labels", "studies"
    needs_boxes, backbone = True, "slice_fracture"
    columns, probabilities, tables = (), tuple(TARGETS), ("study_predictions",)
    measure = Measure("weighted_log_loss", "training constants", study_fracture_parts, len(TARGETS), TARGETS)
    legend = "labels of the study: red 1, grey 0, ?: unknown, not trained on"

    def train_items(self, ids: list[str]) -> list[Item]:
        """Studies without any label train nothing."""
        return self.eval_items([id for id in ids if not np.isnan(self.inputs.label_row(id)).all()])

    def eval_items(self, ids: list[str]) -> list[Item]:
        self.inputs.require_boxes(ids)
        ranges = self.inputs.boxes[["z_from", "z_to"]]
        return whole_studies(self.inputs.lengths(ids), {id: tuple(ranges.loc[id]) for id in ids})

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """labels (8,), NaN where unknown."""
        return {"labels": self.inputs.label_row(entry.item.id)}

    def model(self) -> StudyFractureModel:
        """The backbone alone is taken from the stage-3 run; LSTM, attention and head start from scratch (reference 6.5)."""
        from trainer.models import Backbone, StudyFractureModel, backbone_weights
        from trainer.runs.checkpoint import read_tensors

        chosen = self.settings.model
        backbone = Backbone(chosen.name)
        if self.settings.backbone is not None:
            backbone.load_state_dict(backbone_weights(read_tensors(self.settings.backbone / MODEL_FILE)))
        return StudyFractureModel(
            backbone,
            chunk=chosen.chunk,
            dropout=chosen.dropout,
            batch_norm=chosen.batch_norm,
            mask_pool=chosen.mask_pool,
        )

    def forward(self, model: StudyFractureModel, batch: Batch) -> torch.Tensor:
        return model(batch.images, batch.triplets)

    def loss(self, outputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, Term]:
        from trainer.stages.losses import study_fracture_loss

        return study_fracture_loss(outputs, targets["labels"])

    def rows(self, outputs: torch.Tensor, batch: Batch) -> pd.DataFrame:
        frame = pd.DataFrame({"id": [entry.item.id for entry in batch.entries]})
        frame[list(TARGETS)] = numbers(outputs.float().sigmoid())
        return counted(frame, batch)
