"""AdamW as the reference has it and as torch has it, beside the two formulas written out in float64."""

import numpy as np
import pytest
import torch

from trainer.optimiser import optimiser_of, set_step
from trainer.settings.settings import TrainSettings

B1, B2, EPSILON, DECAY = 0.9, 0.999, 1e-6, 5e-4


def gradients(steps: int) -> torch.Tensor:
    """(steps, 64) from 1e-9 to 1e-2: those of an LSTM's first steps are about as small as epsilon."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, 64, generator=generator) * torch.logspace(-9, -2, 64)


def written_out(weights: np.ndarray, grads: np.ndarray, rates: list[float], form: str) -> np.ndarray:
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        if form == "reference":
            move = rate * np.sqrt(1 - B2**t) / (1 - B1**t) * m / (np.sqrt(v) + EPSILON)
        else:
            move = rate / (1 - B1**t) * m / (np.sqrt(v) / np.sqrt(1 - B2**t) + EPSILON)
        weights = weights * (1 - rate * DECAY) - move
    return weights


def trained(form: str, grads: torch.Tensor, rates: list[float], stop: int | None = None) -> torch.Tensor:
    """stop: the optimiser is kept and read back after so many steps."""
    module = torch.nn.Linear(64, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(module.weight, 0.5)
    settings = TrainSettings(weight_decay=DECAY)
    optimiser = optimiser_of(module, settings)
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True)):
        if step == stop:
            state = optimiser.state_dict()
            optimiser = optimiser_of(module, settings)
            optimiser.load_state_dict(state)
        module.weight.grad = grad.to(torch.float64)[None]
        set_step(optimiser, rate, form)
        optimiser.step()
    return module.weight.detach()[0]


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("stop", [None, 1, 7])
def test_both_forms_of_epsilon_equal_their_formulas(form, stop):
    grads, rates = gradients(25), [1e-3 * (step + 1) / 25 for step in range(25)]
    expected = written_out(np.full(64, 0.5), grads.double().numpy(), rates, form)
    assert np.abs(trained(form, grads, rates, stop).numpy() - expected).max() < 1e-9


def test_the_forms_differ_where_gradients_are_small():
    grads, rates = gradients(3), [1e-3] * 3
    moved = [0.5 - trained(form, grads, rates)[32].item() for form in ("reference", "torch")]
    assert abs(moved[0]) < 0.7 * abs(moved[1])


def test_a_step_that_is_skipped_is_not_counted():
    module = torch.nn.Linear(4, 1)
    optimiser = optimiser_of(module, TrainSettings())
    set_step(optimiser, 1e-3, "reference")
    first = optimiser.param_groups[0]["eps"]
    set_step(optimiser, 1e-3, "reference")  # fp16 found an overflow: the step in between was not taken
    assert optimiser.param_groups[0]["eps"] == first == pytest.approx(EPSILON / np.sqrt(1 - B2))
