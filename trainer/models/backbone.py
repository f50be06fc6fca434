"""The CNN of every stage: a timm model without its classifier (reference 6)."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from cache_schema.errors import UsageError, did_you_mean

PREFIX = "backbone."
"""Where each of the four models keeps its CNN, so that stage 4 finds stage 3's by name."""


class Backbone(nn.Module):
    """Images to features, averaged over the plane.

    name: timm model with its pretrained tag, such as `resnest50d.in1k`.
    pretrained: fetch the tag's weights from timm's hub. weights_file: take them from this local file instead.
    Raises UsageError for an unknown name and for weights that cannot be had or do not fit.
    """

    def __init__(self, name: str, pretrained: bool = False, weights_file: Path | str | None = None):
        super().__init__()
        self.net = _create(name, pretrained and weights_file is None)
        self.width: int = self.net.num_features
        self.memory_format = torch.contiguous_format
        if weights_file is not None:
            _load(self.net, Path(weights_file), name)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) of any float type -> (N, width) float32. The CNN itself runs under the caller's autocast."""
        return self.net(images.to(self._dtype(images.device.type), memory_format=self.memory_format)).float()

    def lay_out(self, channels_last: bool, compiled: bool) -> None:
        """How the CNN runs: its memory layout, and whether each shape of input is compiled. Tensors keep their names."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        if compiled:
            self.net.compile(dynamic=False)

    def _dtype(self, device: str) -> torch.dtype:
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next(self.net.parameters()).dtype


def backbone_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The CNN's tensors from any stage's weights, named as `Backbone.load_state_dict` wants them.

    This is all that stage 4 takes from stage 3 (reference 6.5). Raises UsageError where there are none, because weights
    that match nothing would otherwise leave an untrained CNN in use (reference Q17).
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
            f"the pretrained weights of {name} cannot be fetched ({type(error).__name__})",
            do="give a local file by model.weights_file=FILE, or train from random weights by model.pretrained=false",
        ) from error


def _load(net: nn.Module, path: Path, name: str) -> None:
    """timm's own reader, but strict: apart from the classifier every tensor must be there, and no other."""
    if not path.is_file():
        raise UsageError("no such weights file", where=path, do="check model.weights_file")
    try:
        state = dict(timm.models.load_state_dict(str(path)))
    except Exception as error:  # torch, pickle and safetensors each have their own errors for a file that is no weights
        raise UsageError(
            f"cannot be read as weights ({type(error).__name__})", where=path, expected=".safetensors, .pth or .bin"
        ) from error
    classifier = net.pretrained_cfg.get("classifier") or ()
    for layer in (classifier,) if isinstance(classifier, str) else classifier:
        state.pop(f"{layer}.weight", None)
        state.pop(f"{layer}.bias", None)
    load_strictly(net, state, name, path)


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], name: str, where: Path) -> None:
    """Every tensor there and none too many. Raises UsageError with the file and the first that differs."""
    own = module.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if wrong:
        raise UsageError(f"does not fit {name}: {len(wrong)} tensors differ, first {wrong[0]}", where=where)
    module.load_state_dict(state)
