"""From features to outputs: float32 linear heads, and two poolings over a study's steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-10
"""added to the normalised attention weights (reference 6.5)"""


class Head(nn.Linear):
    """A linear layer, float32 even under autocast. (..., width) -> (..., outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class AttentionPool(nn.Module):
    """Weighted mean over steps (reference 6.5): score_t = tanh(w.h_t + b_t), with one bias b_t per step.

    The bias belongs to the step's index, so the result depends on positions after padding (reference Q30).
    """

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1))
        self.bias = nn.Parameter(torch.zeros(steps))
        nn.init.xavier_uniform_(self.weight)

    def weights(self, h_btw: Tensor, mask_bt: Tensor) -> Tensor:
        """(B, T) float32, sums to 1 over the steps where mask_bt is true."""
        with torch.autocast(h_btw.device.type, enabled=False):
            score = torch.tanh((h_btw.float() @ self.weight).squeeze(-1) + self.bias)
            raised = score.exp() * mask_bt
            return raised / raised.sum(1, keepdim=True) + EPSILON

    def forward(self, h_btw: Tensor, mask_bt: Tensor) -> Tensor:
        """(B, T, width), (B, T) bool -> (B, width) float32."""
        return (self.weights(h_btw, mask_bt)[..., None] * h_btw.float()).sum(1)


def max_pool(h_btw: Tensor, mask_bt: Tensor | None = None) -> Tensor:
    """(B, T, width) -> (B, width): maximum over all steps, or over those where mask_bt is true."""
    if mask_bt is not None:
        h_btw = h_btw.masked_fill(~mask_bt[..., None], float("-inf"))
    return h_btw.amax(1)


def fit_steps(features: list[Tensor], steps: int) -> tuple[Tensor, list[int]]:
    """Studies of any length -> (B, steps, width), and each study's number of valid steps (reference 6.5).

    features: one (F_i, width) tensor per study, F_i >= 1. Longer studies are interpolated linearly with half-pixel
    centres, shorter ones padded with zeros.
    """
    fitted = [_shorten(f, steps) if len(f) > steps else F.pad(f, (0, 0, 0, steps - len(f))) for f in features]
    return torch.stack(fitted), [min(len(f), steps) for f in features]


def _shorten(features_fw: Tensor, steps: int) -> Tensor:
    return F.interpolate(features_fw.float().T[None], size=steps, mode="linear", align_corners=False)[0].T
