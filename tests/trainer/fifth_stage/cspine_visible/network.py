"""A CNN and one logit."""

from torch import Tensor, nn

from trainer.models import Backbone, Network


class VisibleModel(Network):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(backbone.width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B,) logits."""
        return self.head(self.backbone(images)).squeeze(1)
