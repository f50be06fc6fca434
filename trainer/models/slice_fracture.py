"""Stage 3: for every triplet of a window, C1..C7's area ratios and fractures, and any fracture (reference 6.4)."""

from torch import Tensor

from cache_schema import LEVELS
from trainer.models.backbone import Backbone
from trainer.models.heads import Head
from trainer.models.sequence import POSITION_WIDTH, Positional, WindowNetwork, middle_slices, positions


class SliceFractureModel(WindowNetwork):
    """positional=`relative` takes the position of each triplet's middle slice."""

    def __init__(self, backbone: Backbone, dropout: float = 0.0, positional: Positional = "index"):
        super().__init__(backbone, POSITION_WIDTH, dropout, positional)
        self.vertebra = Head(self.hidden, len(LEVELS))
        self.fracture = Head(self.hidden, len(LEVELS))
        self.any = Head(self.hidden, 1)

    def sequence(self, features: Tensor, relative: Tensor | None = None) -> dict[str, Tensor]:
        """(B, T, width) -> vertebra (B, T, 7), fracture (B, T, 7), any (B, T), without activation.

        relative: (B, 3T) in [0, 1], one per slice, for positional=`relative` only.
        """
        relative = self.own_positions(relative)
        middle = None if relative is None else middle_slices(relative)
        hidden = self.recur(features, positions(features.shape[1], middle, features.device))
        return {
            "vertebra": self.vertebra(hidden),
            "fracture": self.fracture(hidden),
            "any": self.any(hidden).squeeze(-1),
        }

    def forward(self, x: Tensor, relative: Tensor | None = None) -> dict[str, Tensor]:
        """Images (B, T, 3, S, S), or their features (B, T, width) -> as `sequence`, float32."""
        return self.sequence(x if x.ndim == 3 else self.encode(x), relative)
