"""AdamW and its learning rate schedule, as in the reference (its 8)."""

import math
from typing import Any, Literal

import torch
from torch import nn

from trainer.settings.settings import TrainSettings

BETAS, EPSILON = (0.9, 0.999), 1e-6
"""reference 8; weight decay applies to all parameters, biases and norms included"""


def optimiser_of(model: nn.Module, train: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=train.lr, betas=BETAS, eps=EPSILON, weight_decay=train.weight_decay)


def learning_rate(peak: float, warmup: float, samples: int, total: int) -> float:
    """Linear warm-up, then cosine to 0 (reference 8), by the samples seen before a forward pass."""
    rising = warmup * total
    if samples < rising:
        return peak * samples / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (samples - rising) / max(1, total - rising)))


def epsilon(step: int, form: Literal["reference", "torch"]) -> float:
    """The epsilon for torch's AdamW at `step`, counted from 1.

    torch adds it to sqrt(v / (1 - beta2^step)), the reference to sqrt(v) (its Q37). Dividing it by sqrt(1 - beta2^step)
    turns the former into the latter.
    """
    return EPSILON / math.sqrt(1 - BETAS[1] ** step) if form == "reference" else EPSILON


def set_step(optimiser: Any, rate: float, form: Literal["reference", "torch"]) -> None:
    """Sets learning rate and epsilon before a step. Epsilon follows the optimiser's own count, without steps skipped in fp16."""
    counts = (state["step"] for state in optimiser.state.values())
    step = int(next(counts, 0)) + 1
    for group in optimiser.param_groups:
        group.update(lr=rate, eps=epsilon(step, form))
