"""The four networks against reference section 6, on small images and with random weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.models import (
    Backbone,
    BoxModel,
    SliceFractureModel,
    StudyFractureModel,
    VertebraModel,
)
from trainer.models.heads import AttentionPool, fit_steps, max_pool
from trainer.models.sequence import channels, middle_slices, positions, sinusoid_rows
from trainer.settings.stage_registry import stage_file

TINY = "test_efficientnet"
SIDE = 64


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def variants(stage: str) -> list[tuple[str, str]]:
    """(variant, timm name) as configured."""
    common, each = stage_file(stage)
    return [(variant, (own or common)["model"]["name"]) for variant, own in each.items()]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return Backbone(TINY)


# full size


def test_every_backbone_has_the_width_of_the_reference():
    names = {name for stage in ("bbox", "vertebrae", "slice_fracture", "study_fracture") for _, name in variants(stage)}
    widths = {name: Backbone(name).width for name in names}
    assert widths == {
        "efficientnet_b1.ft_in1k": 1280,
        "resnest50d.in1k": 2048,
        "seresnext50_32x4d.racm_in1k": 2048,
        "efficientnetv2_rw_m.agc_in1k": 2152,
    }


@pytest.mark.parametrize(("variant", "name"), variants("bbox"))
def test_full_size_bbox_model_gives_a_box_and_a_presence_per_image(variant, name):
    model = BoxModel(Backbone(name)).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, SIDE, SIDE))
    assert out["box"].shape == (2, 4) and out["presence"].shape == (2,)


@pytest.mark.parametrize(("variant", "name"), variants("vertebrae"))
def test_full_size_vertebra_model_gives_seven_ratios_per_slice(variant, name):
    model = VertebraModel(Backbone(name)).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 32, 3, SIDE, SIDE))
    assert out.shape == (1, 96, 7) and out.dtype == torch.float32
    millions = {"resnest50d.in1k": 69.3, "efficientnetv2_rw_m.agc_in1k": 76.4}[name]
    assert round(parameters(model.rnn) / 1e6, 1) == millions
    assert model.ratios.in_features == {"resnest50d.in1k": 4160, "efficientnetv2_rw_m.agc_in1k": 4368}[name]


@pytest.mark.parametrize(("variant", "name"), variants("slice_fracture"))
def test_full_size_slice_fracture_model_gives_three_outputs_per_triplet(variant, name):
    model = SliceFractureModel(Backbone(name)).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 32, 3, SIDE, SIDE))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "vertebra": (1, 32, 7),
        "fracture": (1, 32, 7),
        "any": (1, 32),
    }
    assert round(parameters(model.rnn) / 1e6, 1) == 68.2
    assert model.vertebra.in_features == 4128


@pytest.mark.parametrize(("variant", "name"), variants("study_fracture"))
def test_full_size_study_fracture_model_gives_eight_logits_per_study(variant, name):
    model = StudyFractureModel(Backbone(name), chunk=5).eval()
    with torch.no_grad():
        out = model(torch.randn(5, 3, SIDE, SIDE), [2, 3])
    assert out.shape == (2, 8)
    assert round(parameters(model.rnn) / 1e6, 1) == 67.1
    assert model.logits.in_features == 8192 and model.attention.bias.shape == (192,)


# positional features


def test_a_sinusoid_row_is_eight_sines_then_eight_cosines():
    row = sinusoid_rows(torch.tensor([202]))[0].tolist()
    for j in range(8):
        angle = 202 * 10000.0 ** (-j / 7)
        assert row[j] == pytest.approx(math.sin(angle), abs=1e-6)
        assert row[8 + j] == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_by_index_start_at_row_202_and_channels_at_row_4():
    assert torch.equal(positions(96, None)[0], sinusoid_rows(torch.arange(202, 298)))
    assert torch.equal(channels(96, true_channel=False)[0], sinusoid_rows(torch.arange(4, 100)))
    assert torch.equal(channels(6, true_channel=True)[0], sinusoid_rows(torch.tensor([4, 5, 6, 4, 5, 6])))


def test_relative_positions_span_200_rows_from_head_to_feet():
    rows = positions(3, torch.tensor([[0.0, 0.5, 1.0]]))
    assert torch.equal(rows[0], sinusoid_rows(torch.tensor([202, 302, 402])))


def test_the_triplets_of_stage_3_are_numbered_one_after_another_from_row_202(tiny):
    model = SliceFractureModel(tiny).eval()
    features = torch.randn(2, 32, tiny.width)
    angles = torch.arange(202.0, 234.0)[:, None] * 10000.0 ** (-torch.arange(8.0) / 7)
    rows = torch.cat([angles.sin(), angles.cos()], dim=1).expand(2, 32, 16)
    with torch.no_grad():
        found = model.sequence(features)
        hidden = model.rnn.lstm(torch.cat([features, rows], dim=-1))[0]
        for name in ("vertebra", "fracture", "any"):
            head = getattr(model, name)
            expected = hidden @ head.weight.T + head.bias
            assert (found[name].reshape(expected.shape) - expected).abs().max() < 1e-6


def test_a_triplet_has_the_relative_position_of_its_middle_slice(tiny):
    assert middle_slices(torch.arange(9)[None]).tolist() == [[1, 4, 7]]
    model = SliceFractureModel(tiny, positional="relative").eval()
    features, place = torch.randn(1, 2, tiny.width), torch.tensor([[0.9, 0.1, 0.9, 0.9, 0.2, 0.9]])
    rows = sinusoid_rows(torch.tensor([[222, 242]]))
    with torch.no_grad():
        hidden = model.rnn(torch.cat([features, rows], dim=-1))
        assert torch.allclose(model.sequence(features, place)["vertebra"], model.vertebra(hidden), atol=1e-6)


@pytest.mark.parametrize("kind", [VertebraModel, SliceFractureModel])
def test_only_relative_models_look_at_relative_positions(tiny, kind):
    features = torch.randn(1, 4, tiny.width)
    here, there = torch.linspace(0, 0.2, 12)[None], torch.linspace(0.5, 0.9, 12)[None]

    def first(model, relative=None):
        out = model.sequence(features, relative)
        return out if torch.is_tensor(out) else out["fracture"]

    faithful = kind(tiny).eval()
    assert torch.equal(first(faithful, here), first(faithful, there))
    relative = kind(tiny, positional="relative").eval()
    assert not torch.allclose(first(relative, here), first(relative, there))
    with pytest.raises(ValueError, match="relative positions"):
        first(relative)


# encode and sequence


@pytest.mark.parametrize("kind", [VertebraModel, SliceFractureModel])
def test_features_computed_once_give_what_the_whole_model_gives(tiny, kind):
    model = kind(tiny).eval()
    images = torch.randn(2, 4, 3, SIDE, SIDE)
    with torch.no_grad():
        whole = model(images)
        each = torch.stack([tiny(triplet) for triplet in images.flatten(0, 1).split(1)]).reshape(2, 4, -1)
        split = model.sequence(each)
    pairs = [(whole, split)] if torch.is_tensor(whole) else [(whole[key], split[key]) for key in whole]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_in_training_batch_norm_of_stage_2_sees_one_window_at_a_time():
    model = VertebraModel(Backbone(TINY)).train()
    images = torch.randn(2, 4, 3, SIDE, SIDE)
    together = model.encode(images)
    alone = torch.cat([model.encode(images[:1]), model.encode(images[1:])])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_vertebra_model_repeats_a_triplets_features_for_its_three_slices(tiny):
    model = VertebraModel(tiny).eval()
    seen = {}
    model.rnn.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    features = torch.randn(2, 4, tiny.width)
    model.sequence(features)
    assert seen["x"].shape == (2, 12, tiny.width + 32)
    assert torch.equal(seen["x"][:, 5, : tiny.width], features[:, 1])


# precision


def test_features_and_outputs_are_float32_under_autocast_and_only_the_cnn_runs_in_16_bits():
    model = SliceFractureModel(Backbone(TINY)).eval()
    kinds = {}
    model.backbone.net.register_forward_hook(lambda module, inputs, output: kinds.update(cnn=output.dtype))
    images = torch.randn(1, 4, 3, SIDE, SIDE).half()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.encode(images)
        out = model.sequence(features)
        assert features.dtype == torch.float32 and kinds["cnn"] == torch.bfloat16
        assert {value.dtype for value in out.values()} == {torch.float32}
    with torch.no_grad():
        exact = model.sequence(features)
    assert torch.equal(out["fracture"], exact["fracture"])


# stage 4: chunks, freezing, batches


@pytest.fixture
def study_model() -> StudyFractureModel:
    model = StudyFractureModel(Backbone(TINY), steps=12, chunk=4)
    # A fresh batch norm leaves constants alone; give it statistics worth freezing.
    for layer in model.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
    return model


def test_chunks_of_one_shape_give_what_one_pass_gives(study_model):
    images = torch.randn(10, 3, SIDE, SIDE)
    shapes = []
    study_model.backbone.register_forward_pre_hook(lambda module, inputs: shapes.append(len(inputs[0])))
    features = study_model.encode(images)
    assert shapes == [4, 4, 4] and features.shape == (10, study_model.backbone.width)
    with torch.no_grad():
        assert torch.allclose(features, study_model.backbone(images), atol=1e-5)


def test_chunks_are_filled_up_in_whatever_precision_pictures_come(study_model):
    """float16 images under an autocast to bfloat16, which does not join them."""
    images = torch.randn(5, 3, SIDE, SIDE).half()
    expected = study_model.encode(images.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = study_model.encode(images)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=0.1, rtol=0.1)


def test_a_study_is_predicted_alone_as_in_any_batch_and_order(study_model):
    study_model.eval()
    studies = [torch.randn(n, 3, SIDE, SIDE) for n in (5, 15, 12)]
    with torch.no_grad():
        alone = torch.cat([study_model(s, [len(s)]) for s in studies])
        together = study_model(torch.cat(studies), [5, 15, 12])
        turned = study_model(torch.cat(studies[::-1]), [12, 15, 5])
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(alone, turned.flip(0), atol=1e-5)


def test_training_stage_4_moves_neither_weights_nor_statistics_of_the_backbone(study_model):
    before = {key: value.clone() for key, value in study_model.backbone.state_dict().items()}
    study_model.train()
    study_model(torch.randn(6, 3, SIDE, SIDE), [4, 2]).sum().backward()
    assert all(torch.equal(before[key], value) for key, value in study_model.backbone.state_dict().items())
    trained = {name.partition(".")[0] for name, p in study_model.named_parameters() if p.grad is not None}
    assert trained == {"rnn", "attention", "logits"}


def test_the_references_batch_norm_drift_is_a_switch():
    model = StudyFractureModel(Backbone(TINY), steps=12, chunk=4, batch_norm="train").train()
    sizes, before = [], {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    assert model.encode(torch.randn(9, 3, SIDE, SIDE)).shape[0] == 9
    assert sizes == [4, 4, 2], "a lone image is doubled, since it has no spread of its own"
    moved = [k for k, v in model.backbone.state_dict().items() if not torch.equal(before[k], v)]
    assert moved and all("running" in k or "num_batches" in k for k in moved)
    assert not model.eval().backbone.training


@pytest.mark.parametrize("mask_pool", [False, True])
def test_padding_is_seen_by_lstm_and_max_pool_unless_masked(study_model, mask_pool):
    study_model.mask_pool = mask_pool
    features = torch.randn(5, study_model.backbone.width)
    short = study_model.classify([features])
    study_model.steps = 9
    study_model.attention.bias = nn.Parameter(torch.zeros(9))
    assert torch.allclose(short, study_model.classify([features]), atol=1e-5) == mask_pool


# stage 4: pooling


@pytest.mark.parametrize("length", [5, 192, 300])
def test_studies_shorter_equal_and_longer_than_the_steps_fit(length):
    features = torch.rand(length, 3) + 1
    fitted, lengths = fit_steps([features], 192)
    assert fitted.shape == (1, 192, 3) and lengths == [min(length, 192)]
    if length <= 192:
        assert torch.equal(fitted[0, :length], features) and not fitted[0, length:].any()
    else:
        plane = F.interpolate(features[None, None], size=(192, 3), mode="bilinear", align_corners=False)[0, 0]
        assert torch.allclose(fitted[0], plane, atol=1e-5)


def test_attention_sums_to_one_over_the_filled_steps_and_follows_its_formula():
    pool = AttentionPool(6, 10).requires_grad_(False)
    nn.init.normal_(pool.bias)
    hidden, mask = torch.randn(2, 10, 6), torch.arange(10) < torch.tensor([[10], [4]])
    weights = pool.weights(hidden, mask)
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-6)
    assert weights[1, 4:].max() < 1e-9
    scores = [math.exp(math.tanh(float(hidden[1, t] @ pool.weight[:, 0] + pool.bias[t]))) for t in range(4)]
    assert weights[1, :4].tolist() == pytest.approx([s / sum(scores) for s in scores], abs=1e-6)
    assert torch.allclose(pool(hidden, mask)[1], weights[1] @ hidden[1], atol=1e-6)


def test_max_pool_covers_all_steps_or_the_masked_ones():
    hidden = torch.tensor([[[-1.0], [-2.0], [0.0]]])
    assert max_pool(hidden).item() == 0.0
    assert max_pool(hidden, torch.tensor([[True, True, False]])).item() == -1.0
