"""Stage 2: for every slice of a window, the area ratio of each of C1..C7 (reference 6.3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cache_schema import LEVELS
from trainer.models.backbone import Backbone
from trainer.models.heads import Head
from trainer.models.sequence import POSITION_WIDTH, TRIPLET, BiLSTM, channels, positions


class VertebraModel(nn.Module):
    """positional: `index` gives each slice its number in the window, as the reference does (its Q2);
    `relative` its place in the study, which the caller passes.
    """

    def __init__(self, backbone: Backbone, dropout: float = 0.1, positional: Literal["index", "relative"] = "index"):
        super().__init__()
        self.backbone = backbone
        self.positional = positional
        width = backbone.width + 2 * POSITION_WIDTH
        self.rnn = BiLSTM(width)
        self.dropout = nn.Dropout(dropout)
        self.ratios = Head(2 * width, len(LEVELS))

    def encode(self, images: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, width) float32.

        In training the CNN takes one window at a time: batch norm's statistics are those of a window (reference 6.3).
        """
        if self.training:
            return torch.stack([self.backbone(window) for window in images])
        return self.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def sequence(self, features: Tensor, relative: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, 3T, 7), no activation. relative: (B, 3T) in [0, 1], for positional=`relative` only."""
        by_slice = features.repeat_interleave(TRIPLET, dim=1)
        batch, slices, _ = by_slice.shape
        own = self.positional == "relative"
        if own and relative is None:
            raise ValueError("positional='relative' needs the slices' relative positions")
        position = positions(slices, relative if own else None, features.device).expand(batch, -1, -1)
        channel = channels(slices, own, features.device).expand(batch, -1, -1)
        return self.ratios(self.dropout(self.rnn(torch.cat([by_slice, position, channel], dim=-1))))

    def forward(self, x: Tensor, relative: Tensor | None = None) -> Tensor:
        """Images (B, T, 3, S, S), or their features (B, T, width) -> (B, 3T, 7) float32."""
        return self.sequence(x if x.ndim == 3 else self.encode(x), relative)
