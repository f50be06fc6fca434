"""Without a network: pretrained weights from a file or from a hub's folder that was carried, and a cache from its zip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from trainer.process.shared_memory import ENOUGH, free_shared_memory, spare_shared_memory

MODEL = "test_efficientnet_gn.r160_in1k"
ALONE = ("unshare", "--net")
"""without any interface that is up"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in timm.create_model(MODEL).state_dict().items()}, path)
    return path


def hub_with(weights: Path, folder: Path) -> Path:
    """HF_HOME as a download leaves it."""
    name = timm.create_model(MODEL).pretrained_cfg["hf_hub_id"].replace("/", "--")
    place, revision = folder / "hub" / f"models--{name}", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(revision)
    (place / "snapshots" / revision).mkdir(parents=True)
    (place / "snapshots" / revision / "model.safetensors").symlink_to(weights)
    return folder


def train(cache: Path, out: Path, config: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    given = [
        f"cache={cache}",
        f"out={out}",
        f"config={config}",
        "stage=bbox",
        "fold=0",
        f"model.name={MODEL}",
        "train.lr=1e-9",
    ]
    return subprocess.run(
        [*ALONE, sys.executable, "-m", "trainer.run", *given, *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def first_layer(folder: Path) -> torch.Tensor:
    (path,) = folder.glob("bbox-*/*/model.safetensors")
    return load_file(path)["backbone.net.conv_stem.weight"]


@pytest.mark.check
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_a_run_starts_from_carried_weights(tiny_cache, tiny_settings, weights, tmp_path):
    expected = load_file(weights)["conv_stem.weight"]
    hub = {"HF_HOME": str(hub_with(weights, tmp_path / "carried")), "HF_HUB_OFFLINE": "1"}
    zipped = tmp_path / "cache.zip"
    copy = [sys.executable, "-m", "preprocess", "copy", tiny_cache, zipped]
    subprocess.run([*ALONE, *copy], check=True, capture_output=True)
    ways = {
        "file": ([tiny_cache, f"model.weights_file={weights}"], {}),
        "hub": ([zipped, "model.pretrained=true"], hub),
    }
    for name, ((cache, word), environment) in ways.items():
        done = train(cache, tmp_path / name, tiny_settings, word, **environment)
        assert done.returncode == 0, done.stderr
        assert torch.allclose(first_layer(tmp_path / name), expected, atol=1e-6), name
    empty = {"HF_HOME": str(tmp_path / "nothing"), "HF_HUB_OFFLINE": "1"}
    done = train(tiny_cache, tmp_path / "none", tiny_settings, "model.pretrained=true", **empty)
    line = f"error: the pretrained weights of {MODEL} cannot be downloaded"
    assert done.returncode == 2 and line in done.stderr and "set model.weights_file=FILE" in done.stderr


def test_gpus_leave_a_small_shared_memory_alone_unless_the_user_has_decided():
    assert spare_shared_memory({}, 64 << 20) == {"NCCL_SHM_DISABLE": "1"}
    assert spare_shared_memory({}, ENOUGH) == {}
    assert spare_shared_memory({"NCCL_SHM_DISABLE": "0"}, 0) == {}
    assert free_shared_memory() > 0
