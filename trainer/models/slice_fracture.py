"""Stage 3: for every triplet of a window, C1..C7's area ratios and fractures, and any fracture (reference 6.4)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cache_schema import LEVELS
from trainer.models.backbone import Backbone
from trainer.models.heads import Head
from trainer.models.sequence import POSITION_WIDTH, BiLSTM, middle_slices, positions


class SliceFractureModel(nn.Module):
    """positional: `index` numbers the triplets of a window one after another, as the reference does (its 6.4);
    `relative` gives each the place of its middle slice in the study, which the caller passes.
    """

    def __init__(self, backbone: Backbone, dropout: float = 0.0, positional: Literal["index", "relative"] = "index"):
        super().__init__()
        self.backbone = backbone
        self.positional = positional
        width = backbone.width + POSITION_WIDTH
        self.rnn = BiLSTM(width)
        self.dropout = nn.Dropout(dropout)
        self.vertebra = Head(2 * width, len(LEVELS))
        self.fracture = Head(2 * width, len(LEVELS))
        self.any = Head(2 * width, 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, width) float32, all windows in one pass of the CNN (reference 6.4)."""
        return self.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def sequence(self, features: Tensor, relative: Tensor | None = None) -> dict[str, Tensor]:
        """(B, T, width) -> vertebra (B, T, 7), fracture (B, T, 7), any (B, T), no activation.

        relative: (B, 3T) in [0, 1], one a slice, for positional=`relative` only.
        """
        batch, steps, _ = features.shape
        own = self.positional == "relative"
        if own and relative is None:
            raise ValueError("positional='relative' needs the slices' relative positions")
        place = middle_slices(relative) if own else None
        position = positions(steps, place, features.device)
        hidden = self.rnn(torch.cat([features, position.expand(batch, -1, -1)], dim=-1))
        hidden = self.dropout(hidden)
        return {
            "vertebra": self.vertebra(hidden),
            "fracture": self.fracture(hidden),
            "any": self.any(hidden).squeeze(-1),
        }

    def forward(self, x: Tensor, relative: Tensor | None = None) -> dict[str, Tensor]:
        """Images (B, T, 3, S, S), or their features (B, T, width) -> as `sequence`, float32."""
        return self.sequence(x if x.ndim == 3 else self.encode(x), relative)
