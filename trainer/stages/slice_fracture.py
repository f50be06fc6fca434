"""Stage 3: vertebra ratios and fractures of every triplet, trained on pseudo labels (reference 4.3, 6.4)."""

import numpy as np
import pandas as pd
import torch

from cache_schema import LEVELS
from cache_schema.columns import FRACTURES
from cache_schema.errors import UsageError
from trainer.data.augment import AugmentParams
from trainer.data.items import Item, middles
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.models import SliceFractureModel
from trainer.runs.damaged import tell
from trainer.runs.inputs import FROM_RUNS
from trainer.scores.scores import Score, score
from trainer.stages.base import WindowStage, average, backbone, slice_rows
from trainer.stages.losses import Term, slice_fracture_loss


class SliceFractureStage(WindowStage):
    def train_items(self, ids: list[str]) -> list[Item]:
        missing = sorted(set(ids) - set(self.inputs.pseudo))
        if missing:
            line = f"{len(missing)} studies have no pseudo labels, first {missing[0]}"
            raise UsageError(line, where=f"pseudo={self.settings.pseudo}", do=FROM_RUNS.format("vertebrae"))
        short = [id for id in ids if np.isnan(self.inputs.pseudo[id][:, : len(LEVELS)]).any()]
        if short:
            tell(f"{len(short)} studies lack pseudo labels of some slices, which count in no loss, first {min(short)}")
        return super().train_items(ids)

    def targets(self, entry: ScheduledItem, z_index: np.ndarray, params: AugmentParams) -> dict[str, np.ndarray]:
        """ratios, fractures (triplets, 7) at the middle slices, NaN where unknown; mask (triplets): 0 where padded."""
        middle = middles(z_index)
        values = self.inputs.pseudo[entry.item.id][middle]
        return {"ratios": values[:, :7], "fractures": values[:, 7:], "mask": middle >= 0}

    def model(self) -> SliceFractureModel:
        return SliceFractureModel(backbone(self.settings), self.settings.model.dropout, self.settings.model.positional)

    def loss(self, outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, Term]:
        return slice_fracture_loss(outputs, targets["ratios"], targets["fractures"], targets["mask"].bool())

    def rows(self, outputs: dict[str, torch.Tensor], batch: Batch) -> pd.DataFrame:
        """At the middle slice of each triplet."""
        frame = slice_rows(batch, every=3)
        for columns, name in ((LEVELS, "vertebra"), (FRACTURES, "fracture")):
            frame[list(columns)] = outputs[name].flatten(0, 1).float().cpu().numpy().astype(np.float64)
        frame["any_frac"] = outputs["any"].flatten().float().cpu().numpy().astype(np.float64)
        return frame

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return average(rows, [*LEVELS, *FRACTURES, "any_frac"]).drop(columns="windows")

    def scores(self, table: pd.DataFrame) -> list[Score]:
        if self.settings.pseudo is None:
            return []
        known = self.inputs.pseudo_table
        held_out, training = (known[known["id"].isin(ids)] for ids in (self.inputs.eval_ids(), self.inputs.train_ids()))
        return score("slice_fracture", table, held_out, training, variant=self.settings.variant)
