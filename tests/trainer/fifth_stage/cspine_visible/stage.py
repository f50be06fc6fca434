"""Stage `visible`: whether the middle slice of a triplet shows any of C1..C7. From segmentations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema import Study
from trainer.data.items import triplets
from trainer.scores.score_terms import by_study, matched
from trainer.scores.scores import Measure
from trainer.stages.base import Stage, backbone, counted, to_numpy
from trainer.tables.pooling import mean_over_runs
from trainer.tables.recipes import Recipe, Sources


def shows(study: Study, z_index: int) -> float:
    return float(study.vertebra_ratio[z_index].any())


def truth(studies: Iterable[Study]) -> pd.DataFrame:
    """id, z_index, visible of the triplets that are predicted."""
    rows = [
        (item.id, item.middle, shows(study, item.middle))
        for study in studies
        for item in triplets([(study.id, study.record.slices)], every=3)
    ]
    return pd.DataFrame(rows, columns=["id", "z_index", "visible"])


def log_losses(predictions: pd.DataFrame, truth: pd.DataFrame, training: pd.DataFrame):
    """Beside the share of visible slices in the training folds."""
    rows = matched(predictions, truth, ["id", "z_index"])
    true = rows["visible_true"].to_numpy()

    def loss(probability):
        return -np.log(np.where(true > 0.5, probability, 1 - probability).clip(1e-6))[:, None]

    constant = np.full(len(rows), training["visible"].mean())
    return by_study(rows["id"], loss(rows["visible"].to_numpy()), loss(constant), np.ones((len(rows), 1)))


def visible_ranges(sources: Sources) -> pd.DataFrame:
    """id, z_from, z_to: the slices between which a study is likelier than its median to show a vertebra, the end exclusive."""
    mean = mean_over_runs(sources.predictions(), ["id", "z_index"])
    seen = mean[mean["visible"] >= mean.groupby("id")["visible"].transform("median")].groupby("id")["z_index"]
    return pd.DataFrame({"z_from": seen.min(), "z_to": seen.max() + 1}).reset_index()


TABLES = {"visible_ranges": Recipe(visible_ranges, version="1")}


class VisibleStage(Stage):
    name, version, config = "visible", 1, Path(__file__).with_name("visible.yaml")
    learns_from, items = "segmentations", "triplets"
    columns, probabilities, tables = (), ("visible",), TABLES
    measure = Measure("log_loss", "training constant", log_losses)
    truth = staticmethod(truth)
    legend = "visible: 1 where the middle slice shows a vertebra"

    def train_items(self, ids):
        return triplets(self.inputs.lengths(ids), every=1)

    def eval_items(self, ids):
        return triplets(self.inputs.lengths(ids), every=3)

    def targets(self, entry, z_index, params):
        return {"visible": np.array(shows(self.inputs.study(entry.item.id), entry.item.middle))}

    def model(self):
        from cspine_visible.network import VisibleModel

        return VisibleModel(backbone(self.settings))

    def forward(self, model, batch):
        return model(batch.images)

    def loss(self, outputs, targets):
        from torch.nn import functional as F

        from trainer.stages.losses import Term

        entropy = F.binary_cross_entropy_with_logits(outputs.float(), targets["visible"], reduction="none")
        return {"entropy": Term(1.0, entropy.sum(), entropy.new_full((), len(entropy)))}

    def rows(self, outputs, batch):
        items = [entry.item for entry in batch.entries]
        frame = pd.DataFrame({"id": [item.id for item in items], "z_index": [item.middle for item in items]})
        frame["visible"] = to_numpy(outputs.float().sigmoid())
        return counted(frame, batch)
