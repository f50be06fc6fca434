"""Stage 2: for every slice of a window, the area ratio of each of C1..C7 (reference 6.3)."""

import torch
from torch import Tensor

from cache_schema import LEVELS
from trainer.models.backbone import Backbone
from trainer.models.heads import Head
from trainer.models.sequence import POSITION_WIDTH, TRIPLET, Positional, WindowNetwork, channels, positions


class VertebraModel(WindowNetwork):
    """positional=`relative` takes the position of each slice, and its channel in the triplet."""

    def __init__(self, backbone: Backbone, dropout: float = 0.1, positional: Positional = "index"):
        super().__init__(backbone, 2 * POSITION_WIDTH, dropout, positional)
        self.ratios = Head(self.hidden, len(LEVELS))

    def encode(self, images: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, width) float32.

        In training the CNN takes one window at a time, so that batch norm sees one window's statistics (reference 6.3).
        """
        return torch.stack([self.backbone(window) for window in images]) if self.training else super().encode(images)

    def sequence(self, features: Tensor, relative: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, 3T, 7), without activation. relative: (B, 3T) in [0, 1], for positional=`relative` only."""
        by_slice = features.repeat_interleave(TRIPLET, dim=1)
        slices, relative, device = by_slice.shape[1], self.own_positions(relative), features.device
        encodings = positions(slices, relative, device), channels(slices, relative is not None, device)
        return self.ratios(self.recur(by_slice, *encodings))

    def forward(self, x: Tensor, relative: Tensor | None = None) -> Tensor:
        """Images (B, T, 3, S, S), or their features (B, T, width) -> (B, 3T, 7) float32."""
        return self.sequence(x if x.ndim == 3 else self.encode(x), relative)
