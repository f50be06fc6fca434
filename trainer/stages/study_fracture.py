"""Stage 4: eight probabilities a study over a frozen stage-3 backbone (reference 4.4, 6.5)."""

import numpy as np
import pandas as pd
import torch

from cache_schema import TARGETS
from trainer.data.augment import AugmentParams
from trainer.data.items import Item, whole_studies
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.models import Backbone, StudyFractureModel, backbone_weights
from trainer.runs.checkpoint import read_tensors
from trainer.runs.files import MODEL_FILE
from trainer.runs.inputs import Inputs
from trainer.scores.scores import Score, score
from trainer.settings.settings import Settings
from trainer.stages.losses import Term, study_fracture_loss


class StudyFractureStage:
    by_block = False
    overlapping = False

    def __init__(self, settings: Settings, inputs: Inputs):
        self.settings, self.inputs = settings, inputs

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
        return study_fracture_loss(outputs, targets["labels"])

    def rows(self, outputs: torch.Tensor, batch: Batch) -> pd.DataFrame:
        frame = pd.DataFrame({"id": [entry.item.id for entry in batch.entries]})
        frame[list(TARGETS)] = outputs.float().sigmoid().cpu().numpy().astype(np.float64)
        return frame[[entry.counts for entry in batch.entries]]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.sort_values("id", kind="stable").reset_index(drop=True)

    def scores(self, table: pd.DataFrame) -> list[Score]:
        labels = self.inputs.labels.reset_index(drop=True).assign(id=self.inputs.labels.index)[["id", *TARGETS]]
        held_out, training = (
            labels[labels["id"].isin(ids)] for ids in (self.inputs.eval_ids(), self.inputs.train_ids())
        )
        return score("study_fracture", table, held_out, training, variant=self.settings.variant)
