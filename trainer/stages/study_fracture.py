"""Stage 4: eight probabilities per study over a frozen stage-3 backbone (reference 4.4, 6.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cache_schema import TARGETS
from trainer.data.items import Item, whole_studies
from trainer.runs.file_names import MODEL_FILE
from trainer.scores.score_terms import study_fracture_parts
from trainer.scores.scores import Measure
from trainer.stages.base import Stage, counted, to_numpy
from trainer.tables.recipes import OF_STUDY_FRACTURE

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.data.augment import AugmentParams
    from trainer.data.loader import Batch
    from trainer.data.order import ScheduledItem
    from trainer.models import StudyFractureModel
    from trainer.stages.losses import Term


class StudyFractureStage(Stage):
    name, order, version = "study_fracture", 4, 3
    learns_from, items = "labels", "studies"
    needs_boxes, backbone = True, "slice_fracture"
    columns, probabilities, tables = (), tuple(TARGETS), OF_STUDY_FRACTURE
    measure = Measure("weighted_log_loss", "training constants", study_fracture_parts, len(TARGETS), TARGETS)
    legend = "labels of the study: red 1, grey 0, ?: unknown, not trained on"

    def train_items(self, ids: list[str]) -> list[Item]:
        """One item per study with at least one label."""
        return self.eval_items([id for id in ids if not np.isnan(self.inputs.label_row(id)).all()])

    def eval_items(self, ids: list[str]) -> list[Item]:
        self.inputs.require_boxes(ids)
        ranges = self.inputs.boxes[["z_from", "z_to"]]
        return whole_studies(self.inputs.lengths(ids), {id: tuple(ranges.loc[id]) for id in ids})

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """labels (8,), NaN where unknown."""
        return {"labels": self.inputs.label_row(entry.item.id)}

    def model(self) -> StudyFractureModel:
        """Only the backbone comes from the stage-3 run; LSTM, attention and head start from scratch (reference 6.5)."""
        from trainer.models import Backbone, StudyFractureModel, backbone_weights
        from trainer.runs.checkpoint import read_tensors

        settings = self.settings.model
        backbone = Backbone(settings.name)
        if self.settings.backbone is not None:
            backbone.load_state_dict(backbone_weights(read_tensors(self.settings.backbone / MODEL_FILE)))
        return StudyFractureModel(
            backbone,
            chunk=settings.chunk,
            dropout=settings.dropout,
            batch_norm=settings.batch_norm,
            mask_pool=settings.mask_pool,
        )

    def forward(self, model: StudyFractureModel, batch: Batch) -> Tensor:
        return model(batch.images, batch.triplets)

    def loss(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Term]:
        from trainer.stages.losses import study_fracture_loss

        return study_fracture_loss(outputs, targets["labels"])

    def rows(self, outputs: Tensor, batch: Batch) -> pd.DataFrame:
        frame = pd.DataFrame({"id": [entry.item.id for entry in batch.entries]})
        frame[list(TARGETS)] = to_numpy(outputs.float().sigmoid())
        return counted(frame, batch)
