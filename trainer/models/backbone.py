"""The CNN of every stage: a timm model without its classifier (reference 6)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cache_schema.errors import UsageError, did_you_mean

PREFIX = "backbone."
"""where each `Network` holds its CNN, so that stage 4 finds stage 3's by name"""


class Backbone(nn.Module):
    """Images to features, averaged over the plane.

    name: timm model with its pretrained tag, such as `resnest50d.in1k`.
    pretrained: download the tag's weights from timm's hub. weights_file: load them from this local file instead.
    Raises UsageError for an unknown name, and for weights that are missing or do not fit.
    """

    def __init__(self, name: str, pretrained: bool = False, weights_file: Path | str | None = None):
        super().__init__()
        self.net = _create(name, pretrained and weights_file is None)
        width: Any = self.net.num_features
        self.width: int = width
        self.memory_format = torch.contiguous_format
        if weights_file is not None:
            _load(self.net, Path(weights_file), name)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) of any float type -> (N, width) float32. The CNN itself runs under the caller's autocast."""
        return self.net(images.to(self._dtype(images.device.type), memory_format=self.memory_format)).float()

    def lay_out(self, channels_last: bool, compiled: bool) -> None:
        """Sets the CNN's memory format and compiles it for each input shape. Tensors keep their names."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        if compiled:
            self.net.compile(dynamic=False)

    def _dtype(self, device: str) -> torch.dtype:
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next(self.net.parameters()).dtype


class Network(nn.Module):
    """A stage's network: a backbone, and what turns its features into outputs."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone


def backbone_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The CNN's tensors from any stage's weights, named as `Backbone.load_state_dict` expects them.

    Stage 4 takes nothing else from stage 3 (reference 6.5). Raises UsageError where there are none: weights that match
    nothing would leave the CNN untrained (reference Q17).
    """
    found = {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if key.startswith(PREFIX)}
    if not found:
        raise UsageError("the weights hold no backbone", expected=f"tensors named {PREFIX}*")
    return found


def _create(name: str, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models() + timm.list_pretrained())
        raise UsageError(f"timm has no model {name}", do=near or "check model.name")
    tag = timm.models.split_model_name_tag(name)[1]
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
    if tag and tag not in known:
        raise UsageError(f"{name}: timm has no weights tagged {tag}", expected=" or ".join(known) or "no tag")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=3, global_pool="avg")
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UsageError(
            f"the pretrained weights of {name} cannot be downloaded ({type(error).__name__})",
            do="set model.weights_file=FILE to a local file, or model.pretrained=false to start from random weights",
        ) from error


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Loads the file by timm's own reader, but strictly: exactly the CNN's tensors, with or without a classifier."""
    if not path.is_file():
        raise UsageError("no such weights file", where=path, do="check model.weights_file")
    try:
        state = dict(timm.models.load_state_dict(str(path)))
    except Exception as error:  # torch, pickle and safetensors each raise errors of their own
        raise UsageError(
            f"cannot be loaded as weights ({type(error).__name__})", where=path, expected=".safetensors, .pth or .bin"
        ) from error
    config: Any = net.pretrained_cfg
    classifier = config.get("classifier") or ()
    for layer in (classifier,) if isinstance(classifier, str) else classifier:
        state.pop(f"{layer}.weight", None)
        state.pop(f"{layer}.bias", None)
    load_strictly(net, state, name, path)


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], name: str, where: Path) -> None:
    """Loads exactly the module's own tensors. Raises UsageError with the file and the first tensor that differs."""
    own = module.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if wrong:
        raise UsageError(f"does not fit {name}: {len(wrong)} tensors differ, first {wrong[0]}", where=where)
    module.load_state_dict(state)
