"""What only a GPU can show: DALI's GPU branch against the CPU's images, and training, resuming and predicting there."""

import os

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.numpy import load_file
from samples import SIZE, random_samples
from scipy.ndimage import map_coordinates

from cache_schema import Cache
from cache_schema.tables import read_table
from trainer import loop, train
from trainer.data.augment import Augmentation
from trainer.data.image import MEAN, STD, make_image
from trainer.data.items import triplets, windows
from trainer.data.loader import Loader
from trainer.data.order import Training
from trainer.data.resident import Crops
from trainer.data.source import Source
from trainer.loop import Run
from trainer.models import SliceFractureModel
from trainer.models.backbone import Backbone
from trainer.predictor.heat_maps import heat_map
from trainer.runs.identity import recorded_config
from trainer.runs.metrics_log import MetricsLog
from trainer.settings.settings import AugmentSettings, DataSettings
from trainer.tuning.tuning import Tuning

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda", 0)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""cuBLAS reads it once; deterministic=true sets it too late in a process that has used cuBLAS already"""


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    choose_the_device_again()
    yield
    choose_the_device_again()


def choose_the_device_again():
    """Accelerate's choice otherwise holds for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def levels(images):
    """Grey levels of normalised images."""
    return images.float().cpu().numpy() * (STD[:, None, None]) + MEAN[:, None, None]


def exact(sample):
    """(frames / 3, 3, SIZE, SIZE) grey levels by float64 interpolation, black around the crop."""
    (a, b, c), (d, e, f) = sample.matrix.astype(np.float64)
    x = a * sample.axis_x + b * sample.axis_y + c - 0.5
    y = d * sample.axis_x + e * sample.axis_y + f - 0.5
    frames = [
        map_coordinates(np.float64(frame[..., 0]), [y, x], order=1, mode="grid-constant") for frame in sample.pixels
    ]
    found = np.rint(frames)
    holes = np.hstack([sample.hole_start.reshape(-1, 2), sample.hole_shape.reshape(-1, 2)]).astype(int)
    for y0, x0, h, w in holes:
        found[:, y0 : y0 + h, x0 : x0 + w] = 0
    return found.reshape(-1, 3, SIZE, SIZE)


@pytest.mark.parametrize("frames", [3, 12])
def test_its_images_are_exact(frames):
    """After many white ones, whose memory they get: what looks beyond the crop is black for all that."""
    source = random_samples(8, frames, white=24)
    *_, batch = Loader(source, 8, DataSettings(size=SIZE, workers=0), GPU)
    assert batch.images.dtype == torch.float16 and batch.images.device == GPU
    signed = levels(batch.images) - np.concatenate([exact(sample) for sample in source.samples[24:]])
    apart = np.abs(signed)
    print(
        f"grey levels apart: {apart.max():.2f} at most, {apart.mean():.4f} on average, {signed.mean():+.4f} with their sign"
    )
    assert apart.max() < 1.3 and apart.mean() < 0.1, "but for the rounding, to whole grey levels and to float16"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_its_images_are_those_of_the_plain_loader(interpolation):
    source = random_samples(8, 12)
    settings = DataSettings(size=SIZE, interpolation=interpolation, workers=0)
    (batch,) = Loader(source, 8, settings, GPU)
    plain = np.concatenate([make_image(sample, SIZE, interpolation) for sample in source.samples])
    apart = np.abs(levels(batch.images) - levels(torch.from_numpy(plain)))
    print(f"{interpolation}: grey levels apart: {apart.max():.2f} at most, {apart.mean():.4f} on average")
    assert apart.mean() < 0.05 and np.quantile(apart, 0.999) < 2


@pytest.mark.parametrize("kind", ["triplets", "windows"])
def test_disk_reading_processes_and_its_own_memory_give_the_same_images(kind, tiny_cache):
    cache = Cache(tiny_cache)
    studies = [(row.id, int(row.slices)) for row in cache.index.itertuples()]
    items = triplets(studies, every=3) if kind == "triplets" else windows(studies, 12, 9)
    boxes = {id: (100 + 5 * k, 120, 300, 333) for k, id in enumerate(cache.ids)}

    def shown(device, workers=0, resident="disk"):
        source = Source(
            tiny_cache,
            Training(items, 1, 4),
            Augmentation(64, 5, AugmentSettings(reverse=0.5), thin=0.6),
            boxes,
            limit=12,
        )
        crops = Crops(cache, device) if resident == "gpu" else None
        settings = DataSettings(size=64, workers=workers, resident=resident)
        return torch.cat([batch.images.cpu() for batch in Loader(source, 4, settings, device, crops=crops)])

    disk = shown(GPU)
    assert torch.equal(shown(GPU, workers=2), disk) and torch.equal(shown(GPU, resident="gpu"), disk)
    apart = np.abs(levels(disk) - levels(shown(torch.device("cpu"))))
    print(f"{kind}: {apart.mean():.3f} grey levels apart on average, {apart.max():.1f} at most")
    assert apart.mean() < 0.5


class Stopped(Exception):
    pass


def losses(run):
    return np.array([line["loss"] for line in MetricsLog(run).lines() if "loss" in line])


@pytest.fixture(scope="module")
def given(tiny_cache, tiny_settings, true_boxes, pseudo):
    """stage -> its settings."""
    common = dict(cache=tiny_cache, config=tiny_settings, boxes=true_boxes)
    common |= {
        "train.autotune": "false",
        "data.workers": "0",
    }  # processes of their own are started by the test of images
    return {
        "bbox": dict(stage="bbox", **common),
        "vertebrae": dict(stage="vertebrae", variant="04A", **common, **{"model.dropout": "0"}),
        "slice_fracture": dict(stage="slice_fracture", pseudo=pseudo, **common),
        "study_fracture": dict(stage="study_fracture", **common),
    }


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_all_stages_train_and_predict_as_on_a_cpu(precision, given, tmp_path, monkeypatch):
    made = {}
    for where in ("gpu", "cpu"):
        if where == "cpu":
            monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
            choose_the_device_again()
        for stage, settings in given.items():
            backbone = {"backbone": made["slice_fracture", where]} if stage == "study_fracture" else {}
            wanted = precision if where == "gpu" else "no"
            run = train(out=tmp_path / where, **settings, **backbone, **{"train.precision": wanted})
            made[stage, where] = run
            assert np.isfinite(read_table(run / "predictions.parquet").drop(columns="id").to_numpy(float)).all()
    for stage in given:
        found, expected = (losses(made[stage, where]) for where in ("gpu", "cpu"))
        apart = np.abs(found / expected - 1)
        print(f"{stage} {precision}: first loss {apart[0]:.1e} apart, all {apart.max():.1e}")
        assert apart[0] < (1e-2 if precision == "no" else 5e-2)


@pytest.mark.parametrize("stage", ["bbox", "vertebrae"])
def test_a_run_stopped_at_a_step_goes_on_to_the_same_weights(stage, given, tmp_path, monkeypatch, capsys):
    settings = dict(given[stage], deterministic="true", **{"train.precision": "fp16"})
    whole, steps = train(out=tmp_path / "whole", **settings), Run.step

    def stop_there(self, model, optimiser, batches, passes, step, last):
        if step == 1:
            raise Stopped
        return steps(self, model, optimiser, batches, passes, step, last)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", stop_there)
        with pytest.raises(Stopped):
            train(out=tmp_path / "stopped", **settings)
    resumed = train(out=tmp_path / "stopped", **settings)
    assert "resuming at step 1" in capsys.readouterr().out
    expected, found = (load_file(run / "model.safetensors") for run in (whole, resumed))
    apart = max(np.abs(expected[name] - found[name]).max() for name in expected)
    print(f"{stage}: weights {apart:.1e} apart")
    assert apart == 0


def test_crops_in_its_memory_train_to_the_same_losses(given, tmp_path):
    settings = dict(given["vertebrae"], deterministic="true", **{"train.precision": "no"})
    disk, resident = (
        losses(train(out=tmp_path / kind, **settings, **{"data.resident": kind})) for kind in ("disk", "gpu")
    )
    assert np.allclose(resident, disk, rtol=1e-5)


def test_layout_and_micro_batch_are_tried_written_down_and_used_again(given, tmp_path, capsys):
    settings = dict(given["vertebrae"], **{"train.autotune": "true", "train.micro_batch": "auto"})
    run = train(out=tmp_path, **settings)
    said = capsys.readouterr().out
    print(said)
    assert "autotune: channels last, eager" in said and "does not work" not in said
    chosen = recorded_config(run)["chosen"]
    assert chosen["micro_batch"] == 4
    (run / "model.safetensors").unlink()
    train(out=tmp_path, **settings)
    assert "autotune" not in capsys.readouterr().out and recorded_config(run)["chosen"] == chosen


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet_gn"])
def test_a_layout_trains_as_any_other(name, compiled, given, tmp_path, monkeypatch):
    """The same losses to rounding, compiled or not, with batch norm or group norm, and the same names of weights."""
    settings, made = dict(given["vertebrae"], **{"train.precision": "no", "model.name": name}), []
    for channels_last, compile_ in ((False, False), (True, compiled)):
        tuning = Tuning(2, channels_last, compile_)
        monkeypatch.setattr(loop, "tune", lambda session, model, items, tuning=tuning: tuning)
        made.append(train(out=tmp_path / str(channels_last), **settings))
    found, expected = losses(made[1]), losses(made[0])
    print(found / expected - 1)
    assert np.allclose(found, expected, rtol=5e-3)
    assert load_file(made[0] / "model.safetensors").keys() == load_file(made[1] / "model.safetensors").keys()


def test_a_feature_bank_stands_for_the_images(given, tmp_path):
    backbone = train(out=tmp_path, **given["slice_fracture"], **{"train.precision": "no"})
    settings = dict(given["study_fracture"], backbone=backbone, **{"train.precision": "no"})
    plain, banked = (losses(train(out=tmp_path / str(count), **settings, **{"data.bank": count})) for count in (0, 1))
    assert np.allclose(plain, banked, rtol=1e-3)


def test_a_heat_map_is_that_of_a_cpu():
    torch.manual_seed(0)
    network = SliceFractureModel(Backbone("test_efficientnet_gn"))
    window = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float16)
    expected = heat_map(network, window, 2, "C4")
    assert np.abs(heat_map(network.to(GPU), window, 2, "C4") - expected).max() < 0.05
