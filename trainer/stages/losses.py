"""The stages' losses, as sums and counts, so that the mean over several processes is the mean over all items.

A loss is a dict of Terms. In one process it is total(terms). In several, reduce counts(terms) to its sum and pass that to
total: the sum of the processes' totals is the loss of the whole batch.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.metric import NEGATIVE_WEIGHTS, NONZERO_WEIGHT, POSITIVE_WEIGHTS

PRESENCE_CLIP = (0.05, 0.95)


class Term(NamedTuple):
    """weight x numerator / denominator; both are float32 scalars, the denominator a count without gradient."""

    weight: float
    numerator: Tensor
    denominator: Tensor


def counts(terms: Mapping[str, Term]) -> Tensor:
    """(k,) float32: the terms' denominators, in the dict's order."""
    return torch.stack([term.denominator for term in terms.values()])


def total(terms: Mapping[str, Term], counts: Tensor | None = None) -> Tensor:
    """The loss, a scalar. counts: (k,) denominators instead of the terms' own. Denominators are clamped to at least 1."""
    divisors = [term.denominator for term in terms.values()] if counts is None else counts.unbind()
    parts = [t.weight * t.numerator / d.clamp(min=1) for t, d in zip(terms.values(), divisors, strict=True)]
    return torch.stack(parts).sum()


def bbox_loss(box: Tensor, presence: Tensor, true_box: Tensor, has_box: Tensor) -> dict[str, Term]:
    """Stage 1 (reference 7.1): 0.8 x L1 of the box over items that have one + 0.2 x binary cross-entropy of presence.

    box, true_box: (B, 4) in units of the image's side; presence: (B,) logits; has_box: (B,) in [0, 1].
    true_box may hold anything, NaN included, where has_box is 0.
    """
    positive = has_box > 0.5
    distance = (box.float() - torch.where(positive[:, None], true_box, box.detach()).float()).abs().mean(1)
    label = has_box.float().clamp(*PRESENCE_CLIP)
    entropy = F.binary_cross_entropy_with_logits(presence.float(), label, reduction="none")
    return {
        "box": Term(0.8, distance.sum(), positive.sum().float()),
        "presence": Term(0.2, entropy.sum(), entropy.new_full((), len(entropy))),
    }


def vertebra_loss(ratios: Tensor, true_ratios: Tensor, mask: Tensor | None = None) -> dict[str, Term]:
    """Stage 2 (reference 7.1). ratios, true_ratios: (B, slices, 7); mask: (B, slices) bool, false in padding."""
    return {"ratio": weighted_squared_error(ratios, true_ratios, mask)}


def slice_fracture_loss(
    outputs: Mapping[str, Tensor], true_ratios: Tensor, true_fractures: Tensor, mask: Tensor | None = None
) -> dict[str, Term]:
    """Stage 3 (reference 7.1), the sum of three squared errors.

    outputs: vertebra (B, T, 7), fracture (B, T, 7), any (B, T). true_ratios, true_fractures: (B, T, 7) at the middle
    slice of each triplet, NaN where the study's label is unknown; the target of `any` is the largest of the seven fractures.
    mask: (B, T) bool, false in padding.
    """
    true_any = true_fractures.amax(-1)
    return {
        "vertebra": weighted_squared_error(outputs["vertebra"], true_ratios, mask),
        "fracture": weighted_squared_error(outputs["fracture"], true_fractures, mask),
        "any": weighted_squared_error(outputs["any"], true_any, mask),
    }


def study_fracture_loss(logits: Tensor, labels: Tensor) -> dict[str, Term]:
    """Stage 4, the competition's weighted log loss, each study's weights summing to 1 (reference 7.1).

    logits, labels: (B, 8), patient_overall then C1..C7. The loss ignores NaN labels and studies without any label.
    """
    known = ~labels.isnan()
    target = torch.where(known, labels, 0.0).float()
    positive, negative = _label_weights(target.device)
    weight = torch.where(target > 0.5, positive, negative) * known
    entropy = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    per_study = (weight * entropy).sum(1) / weight.sum(1).clamp(min=1)
    return {"log_loss": Term(1.0, per_study.sum(), known.any(1).sum().float())}


@lru_cache
def _label_weights(device: torch.device) -> tuple[Tensor, Tensor]:
    """(8,) float32 each. Copied to a device once, because the copy blocks the host."""
    return torch.tensor(POSITIVE_WEIGHTS, device=device), torch.tensor(NEGATIVE_WEIGHTS, device=device)


def weighted_squared_error(values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Term:
    """Squared error over all known (not NaN) and unmasked elements; it counts twice where the target is not exactly 0.

    values, targets: (B, T) or (B, T, k); mask: (B, T) bool.
    """
    known = ~targets.isnan()
    if mask is not None:
        known = known & mask.reshape(mask.shape + (1,) * (targets.ndim - mask.ndim))
    target = torch.where(known, targets, 0.0).float()
    weight = torch.where(target != 0, NONZERO_WEIGHT, 1.0) * known
    return Term(1.0, (weight * (values.float() - target).square()).sum(), known.sum().float())
