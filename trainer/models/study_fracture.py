"""Stage 4: eight probabilities for a whole study over stage 3's frozen CNN (reference 6.5)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cache_schema import TARGETS
from trainer.models.backbone import Backbone, Network
from trainer.models.heads import AttentionPool, Head, fit_steps, max_pool
from trainer.models.sequence import BiLSTM


class StudyFractureModel(Network):
    """steps: sequence length. Longer studies are interpolated, shorter ones padded.
    chunk: images in one pass of the CNN.
    batch_norm: `eval` freezes the statistics with the weights. `train` normalises each chunk by its own statistics in
    training and updates the running ones, as the reference does (its Q4).
    mask_pool: the LSTM and the max pool skip padding; the reference includes it (its Q29).
    """

    def __init__(
        self,
        backbone: Backbone,
        steps: int = 192,
        chunk: int = 64,
        dropout: float = 0.0,
        batch_norm: Literal["eval", "train"] = "eval",
        mask_pool: bool = False,
    ):
        super().__init__(backbone.requires_grad_(False))
        self.steps, self.chunk, self.batch_norm, self.mask_pool = steps, chunk, batch_norm, mask_pool
        self.rnn = BiLSTM(backbone.width)
        self.attention = AttentionPool(2 * backbone.width, steps)
        self.dropout = nn.Dropout(dropout)
        self.logits = Head(4 * backbone.width, len(TARGETS))
        self.train()

    def train(self, mode: bool = True) -> "StudyFractureModel":
        super().train(mode)
        if self.batch_norm == "eval":
            self.backbone.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, width) float32 without gradients, `chunk` images at a time.

        The last chunk is padded with zeros, so that a compiled CNN sees one shape. Where batch norm uses the chunk's own
        statistics, padding would change them: the chunk keeps its length, and a single image is doubled.
        """
        features = []
        for part in images.split(self.chunk):
            kept = len(part)
            wanted = max(kept, 2) if self.backbone.training else self.chunk
            if kept < wanted:  # not by torch.cat, which rejects float16 under a bfloat16 autocast
                padded = part.new_zeros(wanted, *part.shape[1:])
                padded[:kept] = part
                if self.backbone.training:
                    padded[kept:] = part
                part = padded
            features.append(self.backbone(part)[:kept])
        return torch.cat(features)

    def classify(self, features: list[Tensor]) -> Tensor:
        """One (F_i, width) tensor per study, F_i >= 1 -> (B, 8) logits float32: patient_overall, then C1..C7."""
        x_btw, lengths = fit_steps(features, self.steps)
        device = x_btw.device
        ends = torch.tensor(lengths, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        mask = torch.arange(self.steps, device=device) < ends[:, None]
        hidden = self.rnn(x_btw, lengths if self.mask_pool else None)
        peak = max_pool(hidden, mask if self.mask_pool else None)
        return self.logits(self.dropout(torch.cat([peak, self.attention(hidden, mask)], dim=-1)))

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Concatenated images (sum F, 3, S, S) of all studies, or their features (sum F, width), and each study's F_i
        -> (B, 8) logits float32. Lengths are a list: the host would have to wait for a tensor on the device."""
        return self.classify(list((x if x.ndim == 2 else self.encode(x)).split(lengths)))
