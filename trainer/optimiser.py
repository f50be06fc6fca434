"""AdamW and its learning rate, as the reference has them (its 8): pure functions of samples and steps, and what sets them."""

import math
from typing import Any, Literal

import torch
from torch import nn

from trainer.settings.settings import TrainSettings

BETAS, EPSILON = (0.9, 0.999), 1e-6
"""reference 8; all parameters decay, biases and norms included"""


def optimiser_of(model: nn.Module, train: TrainSettings) -> torch.optim.AdamW:
    """Of what is not frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=train.lr, betas=BETAS, eps=EPSILON, weight_decay=train.weight_decay)


def learning_rate(peak: float, warmup: float, samples: int, total: int) -> float:
    """Linear warm-up, then cosine to 0 (reference 8): a function of the samples seen before a forward pass, and nothing else."""
    rising = warmup * total
    if samples < rising:
        return peak * samples / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (samples - rising) / max(1, total - rising)))


def epsilon(step: int, form: Literal["reference", "torch"]) -> float:
    """What torch's AdamW is given at its `step`, from 1 on.

    torch adds it to sqrt(v / (1 - beta2^step)), the reference to sqrt(v) (its Q37): dividing it by sqrt(1 - beta2^step)
    makes the first of these the second.
    """
    return EPSILON / math.sqrt(1 - BETAS[1] ** step) if form == "reference" else EPSILON


def set_step(optimiser: Any, rate: float, form: Literal["reference", "torch"]) -> None:
    """Before a step: the learning rate, and epsilon by the optimiser's own count, which leaves out steps skipped in fp16."""
    counts = (state["step"] for state in optimiser.state.values())
    step = int(next(counts, 0)) + 1
    for group in optimiser.param_groups:
        group.update(lr=rate, eps=epsilon(step, form))
