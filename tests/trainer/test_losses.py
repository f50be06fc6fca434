"""Losses against hand-made numbers, and as sums that add up over processes."""

import math

import pytest
import torch

from trainer.stages.losses import (
    bbox_loss,
    counts,
    slice_fracture_loss,
    study_fracture_loss,
    total,
    vertebra_loss,
)


def entropy(p: float, y: float) -> float:
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def test_stage_1_is_l1_over_positives_and_entropy_with_clipped_labels():
    box = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    truth = torch.tensor([[0.2, 0.2, 0.3, 0.8], [9.0, 9.0, 9.0, 9.0]])
    loss = total(bbox_loss(box, torch.zeros(2), truth, torch.tensor([1.0, 0.0])))
    assert loss.item() == pytest.approx(0.8 * (0.1 + 0.4) / 4 + 0.2 * entropy(0.5, 0.95))
    sure = total(bbox_loss(truth, torch.tensor([2.0, -2.0]), truth, torch.tensor([1.0, 0.0])))
    p = 1 / (1 + math.exp(-2))
    assert sure.item() == pytest.approx(0.2 * entropy(p, 0.95))


def test_stage_1_is_finite_and_so_are_its_gradients_without_a_positive():
    box = torch.zeros(2, 4, requires_grad=True)
    loss = total(bbox_loss(box, torch.zeros(2), torch.full((2, 4), float("nan")), torch.zeros(2)))
    loss.backward()
    assert loss.item() == pytest.approx(0.2 * math.log(2)) and not box.grad.any()


def test_stage_2_counts_errors_twice_only_where_the_label_is_not_exactly_zero():
    ratios, truth = torch.zeros(1, 2, 7), torch.zeros(1, 2, 7)
    ratios[0, 0, 0], truth[0, 0, 1], truth[0, 1, 2] = 0.5, 0.5, 0.001
    loss = total(vertebra_loss(ratios, truth))
    assert loss.item() == pytest.approx((0.25 + 2 * 0.25 + 2 * 1e-6) / 14)


def test_stage_2_leaves_padded_slices_out_of_sum_and_count():
    ratios, truth = torch.rand(2, 6, 7), torch.rand(2, 6, 7)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 2:] = False
    terms = vertebra_loss(ratios, truth, mask)
    assert terms["ratio"].denominator.item() == 8 * 7
    expected = (2 * (ratios - truth).square())[mask].mean()
    assert total(terms).item() == pytest.approx(expected.item())


def test_stage_3_sums_three_errors_and_any_aims_at_the_largest_fracture():
    out = {"vertebra": torch.zeros(1, 1, 7), "fracture": torch.zeros(1, 1, 7), "any": torch.zeros(1, 1)}
    ratios, fractures = torch.zeros(1, 1, 7), torch.zeros(1, 1, 7)
    ratios[..., 0], fractures[..., 0], fractures[..., 1] = 0.5, 0.5, 0.25
    loss = total(slice_fracture_loss(out, ratios, fractures))
    assert loss.item() == pytest.approx(2 * 0.25 / 7 + 2 * (0.25 + 0.0625) / 7 + 2 * 0.25)


def test_stage_3_leaves_unknown_fractures_out():
    out = {"vertebra": torch.zeros(1, 2, 7), "fracture": torch.ones(1, 2, 7), "any": torch.ones(1, 2)}
    fractures = torch.zeros(1, 2, 7)
    fractures[0, 0, 3] = float("nan")
    terms = slice_fracture_loss(out, torch.zeros(1, 2, 7), fractures)
    assert {name: term.denominator.item() for name, term in terms.items()} == {"vertebra": 14, "fracture": 13, "any": 1}
    assert total(terms).item() == pytest.approx(2.0)


def test_stage_4_weights_each_study_to_one():
    logits = torch.zeros(2, 8)
    labels = torch.tensor([[1.0] + [0.0] * 6 + [1.0], [0.0] * 8])
    logits[0, 0] = 1.0
    p = 1 / (1 + math.exp(-1))
    first = (14 * entropy(p, 1) + (6 + 2) * math.log(2)) / (14 + 6 + 2)
    assert total(study_fracture_loss(logits, labels)).item() == pytest.approx((first + math.log(2)) / 2)


def test_stage_4_leaves_unknown_labels_out():
    labels = torch.full((2, 8), float("nan"))
    labels[0, 0] = 1.0
    logits = torch.zeros(2, 8, requires_grad=True)
    loss = total(study_fracture_loss(logits, labels))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad[0, 0] != 0 and torch.count_nonzero(logits.grad) == 1


def test_terms_of_two_processes_add_up_to_those_of_one():
    ratios, truth = torch.rand(4, 6, 7), torch.rand(4, 6, 7).round(decimals=1)
    mask = torch.rand(4, 6) > 0.4
    whole = vertebra_loss(ratios, truth, mask)
    parts = [vertebra_loss(ratios[s], truth[s], mask[s]) for s in (slice(0, 1), slice(1, 4))]
    summed = counts(parts[0]) + counts(parts[1])
    assert sum(total(part, summed) for part in parts).item() == pytest.approx(total(whole).item(), rel=1e-6)
