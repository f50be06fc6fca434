"""The CNN's weights: what goes from stage to stage, and what comes from timm or a file."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from cache_schema.errors import UsageError
from trainer.models import Backbone, SliceFractureModel, StudyFractureModel, backbone_weights

TINY = "test_efficientnet"


def test_stage_4_takes_exactly_the_backbone_of_stage_3():
    source, target = SliceFractureModel(Backbone(TINY)), StudyFractureModel(Backbone(TINY), steps=12)
    head = target.logits.weight.clone()
    target.backbone.load_state_dict(backbone_weights(source.state_dict()))
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(value, target.backbone.state_dict()[key])
    assert torch.equal(head, target.logits.weight)


def test_weights_without_a_backbone_are_refused():
    with pytest.raises(UsageError, match="no backbone"):
        backbone_weights({"rnn.lstm.weight_ih_l0": torch.zeros(1)})


def test_pretrained_weights_are_read_from_a_local_file_with_or_without_a_classifier(tmp_path):
    full = timm.create_model(TINY, num_classes=1000)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    loaded = Backbone(TINY, pretrained=True, weights_file=tmp_path / "full.safetensors")
    assert torch.equal(loaded.net.conv_stem.weight, full.conv_stem.weight)
    torch.save(loaded.net.state_dict(), tmp_path / "features.pth")
    again = Backbone(TINY, weights_file=tmp_path / "features.pth")
    assert torch.equal(again.net.conv_stem.weight, full.conv_stem.weight)


def test_a_weights_file_of_another_model_or_none_is_refused_in_one_line(tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "note.pth").write_text("no weights")
    for file, said in (
        ("other.safetensors", "does not fit"),
        ("note.pth", "cannot be loaded as weights"),
        ("gone.pth", "no such"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            Backbone(TINY, weights_file=tmp_path / file)
        assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_a_usage_error_naming_the_way_out(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"model\.weights_file=FILE.*model\.pretrained=false"):
        Backbone("resnest50d.in1k", pretrained=True)


@pytest.mark.parametrize(("name", "hint"), [("resnest5d", "did you mean resnest50d"), ("resnest50d.in2k", "in1k")])
def test_an_unknown_backbone_or_tag_names_the_nearest(name, hint):
    with pytest.raises(UsageError, match=hint):
        Backbone(name)
