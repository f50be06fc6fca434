"""From the features of consecutive triplets to a sequence: positional encodings and the bidirectional LSTM."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from trainer.models.backbone import Backbone, Network

Positional = Literal["index", "relative"]
"""index: a step's index in the window, as in the reference (its Q2). relative: its position in the study"""
POSITION_WIDTH = 16
POSITION_PADDING = 201
"""row before the first position's (reference 6.2)"""
CHANNEL_PADDING = 3
"""row before the first channel's (reference 6.2)"""
RELATIVE_STEPS = 200
"""number of distinct relative positions in [0, 1] (reference 6.2, `intended`)"""
TRIPLET = 3


def sinusoid_rows(rows: Tensor, width: int = POSITION_WIDTH) -> Tensor:
    """(...,) row numbers -> (..., width) float32: sin(r f_j), then cos(r f_j); f_j = 10000^(-j/7) (reference 6.2)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float64, device=rows.device))
    angle = rows.to(torch.float64)[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def positions(steps: int, relative: Tensor | None, device: torch.device | str = "cpu") -> Tensor:
    """Positional encoding of a sequence: (1, steps, 16) by index, or (B, steps, 16) by relative position.

    A step is a slice in stage 2 and a triplet in stage 3. By index (relative=None), step i of any window has row
    202 + i, as in the reference. relative: (B, steps) in [0, 1], 0 at the head; its row is 202 + round(200 x relative).
    """
    if relative is None:
        return sinusoid_rows(POSITION_PADDING + 1 + torch.arange(steps, device=device))[None]
    return sinusoid_rows(POSITION_PADDING + 1 + torch.round(RELATIVE_STEPS * relative.to(device)))


def channels(slices: int, true_channel: bool, device: torch.device | str = "cpu") -> Tensor:
    """(1, slices, 16): the index in the window as in the reference (rows 4, 5, ..), or the true channel (4, 5, 6)."""
    index = torch.arange(slices, device=device)
    return sinusoid_rows(CHANNEL_PADDING + 1 + (index % TRIPLET if true_channel else index))[None]


def middle_slices(per_slice: Tensor) -> Tensor:
    """(B, 3T, ...) -> (B, T, ...): the middle slice of each triplet, 1, 4, 7, .. (reference 7.1)."""
    return per_slice[:, 1::TRIPLET]


class BiLSTM(nn.Module):
    """One bidirectional layer, hidden size = input size. (B, T, width) -> (B, T, 2 width) float32.

    Always float32: the heads need more precision than 192 steps of 16-bit recurrence leave. lengths: steps beyond each
    sequence's length are skipped, and their output is 0. Without lengths the LSTM runs over padding, as in the reference.
    """

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def forward(self, x_btw: Tensor, lengths: list[int] | None = None) -> Tensor:
        with torch.autocast(x_btw.device.type, enabled=False):
            x_btw = x_btw.float()
            if lengths is None:
                return self.lstm(x_btw)[0]
            packed = pack_padded_sequence(x_btw, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x_btw.shape[1])[0]


class WindowNetwork(Network):
    """What stages 2 and 3 share: a CNN over a window's triplets, positional encodings, an LSTM and dropout.

    extra: width that encodings add to the backbone's features.
    """

    def __init__(self, backbone: Backbone, extra: int, dropout: float, positional: Positional):
        super().__init__(backbone)
        self.positional = positional
        width = backbone.width + extra
        self.rnn = BiLSTM(width)
        self.dropout = nn.Dropout(dropout)
        self.hidden = 2 * width

    def encode(self, images: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, width) float32, all windows in one pass of the CNN (reference 6.4)."""
        return self.backbone(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def own_positions(self, relative: Tensor | None) -> Tensor | None:
        """The relative positions this network uses; None for positional=`index`. Raises ValueError where they are missing."""
        if self.positional == "index":
            return None
        if relative is None:
            raise ValueError("positional='relative' needs the slices' relative positions")
        return relative

    def recur(self, *features: Tensor) -> Tensor:
        """Features and encodings, (B or 1, T, ...) each -> (B, T, hidden). The first has the full batch."""
        batch = len(features[0])
        return self.dropout(self.rnn(torch.cat([each.expand(batch, -1, -1) for each in features], dim=-1)))
