"""One optimiser step of each stage is what a few lines of plain PyTorch make of the same images: no Accelerate, no DALI."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits as entropy

from trainer.data.image import make_image
from trainer.data.order import Training
from trainer.data.source import Source
from trainer.loop import Run
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.settings.stage_registry import stage_class

MORE = ["fold=all", "train.warmup=0", "train.epochs=1", "train.precision=no", "data.loader=plain", "model.dropout=0"]
BATCHES = {"bbox": 64, "vertebrae": 12, "slice_fracture": 16, "study_fracture": 4}
"""items of one optimiser step, taken in two passes, and too many for a second step in the epoch"""


def settings_for(stage, cache, tiny_settings, boxes, pseudo, out):
    words = [f"stage={stage}", f"cache={cache}", f"out={out}", f"config={tiny_settings}", f"boxes={boxes}", *MORE]
    words += [f"pseudo={pseudo}"] if stage == "slice_fracture" else []
    words += [f"backbone={out / 'slice_fracture-04F/foldall-seed1'}"] if stage == "study_fracture" else []
    words += ["variant=04A"] if stage == "vertebrae" else []
    return load([*words, f"train.batch={BATCHES[stage]}", f"train.micro_batch={BATCHES[stage] // 2}"])


def squared_error(found, wanted):
    return ((found - wanted) ** 2 * torch.where(wanted == 0, 1.0, 2.0)).mean()


def loss_of(stage, model, x, targets):
    """Reference 7.1, for targets that are all known."""
    if stage == "bbox":
        found, has_box = model(x), targets["has_box"]
        distance = (found["box"] - targets["box"])[has_box > 0.5].abs().mean()
        return 0.8 * distance + 0.2 * entropy(found["presence"], has_box.clamp(0.05, 0.95))
    if stage == "vertebrae":
        return squared_error(model(x), targets["ratios"])
    if stage == "slice_fracture":
        found, fractures = model(x), targets["fractures"]
        terms = [(found["vertebra"], targets["ratios"]), (found["fracture"], fractures)]
        return sum(squared_error(*term) for term in [*terms, (found["any"], fractures.amax(-1))])
    labels = targets["labels"]
    weights = torch.tensor([7.0] + [1.0] * 7) * (1 + labels)
    logits = torch.cat([model(each, [len(each)]) for each in x])
    return ((weights * entropy(logits, labels, reduction="none")).sum(1) / weights.sum(1)).mean()


@torch.no_grad()
def first_update(trained, rate, decay):
    """AdamW's first step as the reference takes it: epsilon stands outside of the bias correction, all weights decay."""
    for parameter in (parameter for parameter in trained if parameter.grad is not None):
        mean, square = 0.1 * parameter.grad, 0.001 * parameter.grad.square()
        moved = rate * math.sqrt(0.001) / 0.1 * mean / (square.sqrt() + 1e-6)
        parameter.copy_(parameter - moved - rate * decay * parameter)


def plain_step(settings):
    """(loss, gradient norm, weights before, weights after) of one optimiser step in two passes."""
    inputs, name = Inputs(settings), settings.stage
    stage = stage_class(name)(settings, inputs)
    torch.manual_seed(settings.seed)
    ids = inputs.train_ids()
    schedule = Training(stage.train_items(ids), settings.seed, settings.train.batch, by_block=stage.items == "triplets")
    augmentation = Run(settings, inputs, "").augmentation()
    source = Source(settings.cache, schedule, augmentation, inputs.crop_boxes(ids))
    torch.manual_seed(settings.seed)
    model = stage.model().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rate = settings.train.lr * 0.5 * (1 + math.cos(math.pi / 2))  # half of the samples were seen before the second pass
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses, half = [], settings.train.batch // 2
    for first in (0, half):
        x, rows = [], []
        for entry in [schedule[k] for k in range(first, first + half)]:
            params = augmentation(entry.epoch, entry.item)
            x.append(torch.from_numpy(make_image(source.sample(entry), settings.data.size)).float())
            rows.append(stage.targets(entry, entry.item.z_index(params.step, params.phase), params))
        x = x if name == "study_fracture" else torch.cat(x) if name == "bbox" else torch.stack(x)
        targets = {key: torch.stack([torch.tensor(row[key]) for row in rows]).float() for key in rows[0]}
        loss = loss_of(name, model, x, targets)
        (loss / 2).backward()
        losses.append(float(loss.detach()))
    norm = torch.stack([parameter.grad.norm() for parameter in trained if parameter.grad is not None]).norm()
    first_update(trained, rate, settings.train.weight_decay)
    return sum(losses) / 2, float(norm), before, model.state_dict()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("steps")


@pytest.mark.parametrize("stage", BATCHES)
def test_a_step_equals_one_of_plain_pytorch(stage, tiny_cache, tiny_settings, true_boxes, pseudo, out):
    settings = settings_for(stage, tiny_cache, tiny_settings, true_boxes, pseudo, out)
    loss, norm, before, expected = plain_step(settings)
    Run(settings, Inputs(settings), "key").train()
    (line,) = (json.loads(line) for line in (settings.run_dir / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 1 and line["loss"] == pytest.approx(loss, rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    found, moved = load_file(settings.run_dir / "model.safetensors"), 0
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # a gradient near AdamW's epsilon carries its own rounding into a bias that began at 0
        assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
        moved += bool((found[name] != before[name]).any())
    assert moved > 5
