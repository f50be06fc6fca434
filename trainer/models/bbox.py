"""Stage 1: a box around C1..C7 in one triplet of slices, and its presence (reference 6.1)."""

from torch import Tensor

from trainer.models.backbone import Backbone, Network
from trainer.models.heads import Head


class BoxModel(Network):
    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.box = Head(backbone.width, 4)
        self.presence = Head(backbone.width, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> box (B, 4): x0 y0 x1 y1 in units of the image's side, unbounded; presence (B,): logits."""
        features = self.backbone(images)
        return {"box": self.box(features), "presence": self.presence(features).squeeze(-1)}
