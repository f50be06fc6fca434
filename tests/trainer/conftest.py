"""A small cache with labels, two folds and segmentations, and the smallest settings on the real code path."""

import fcntl
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cache_schema import Cache, CacheWriter
from cache_schema.tables import write_table
from preprocess import studies
from preprocess.phantom.generate import write_phantom
from trainer import train
from trainer.scores.truth import ratio_truth
from trainer.settings.stage_registry import stage_names
from trainer.tables.boxes import segmentation_box
from trainer.tables.pseudo import pseudo_labels

os.environ["ACCELERATE_USE_CPU"] = "true"
"""on a machine with a GPU too, and in the processes that tests start; test_gpu.py alone goes there"""

SETTINGS = """
model: {name: test_efficientnet_gn, pretrained: false, chunk: 8}
data: {size: 64, frames: 12, stride: 6, eval_stride: 8}
train: {epochs: 2, batch: 4, micro_batch: 2, eval_batch: 3, evaluate_every: 0, threads: 1, checkpoint_minutes: 0, log_every: 1}
tracker: none
stages:
  bbox:
    train: {batch: 16, micro_batch: 8, epochs: 1, lr: 3e-3}
  study_fracture:
    train: {batch: 2, epochs: 1}
"""


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory) -> Path:
    """Six studies of 30 slices, four of them segmented, two folds of three."""
    root = tmp_path_factory.mktemp("tiny")
    labels = write_phantom(
        root / "rsna", studies=6, slices=30, segmented=4, syntax="explicit", seed=3, workers=2, progress=False
    )
    writer = CacheWriter(root / "cache")
    segmented = {}
    for study in studies(root / "rsna"):
        writer.publish(study)
        segmented[study.id] = study.slice_box is not None
    labels = labels.rename(columns={"StudyInstanceUID": "id"})
    order = sorted(labels["id"], key=lambda id: (segmented[id], id))
    labels["fold"] = labels["id"].map({id: place % 2 for place, id in enumerate(order)})
    writer.finish(labels=labels)
    return root / "cache"


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="session")
def true_boxes(tiny_cache, tmp_path_factory) -> Path:
    """study_boxes from the segmentations; where there is none, a box around the whole study."""
    cache, rows = Cache(tiny_cache), []
    for id in cache.ids:
        study = cache.study(id)
        record = study.record
        if study.slice_box is None:
            rows.append(
                dict(
                    id=id,
                    x0=0,
                    y0=0,
                    x1=record.columns,
                    y1=record.rows,
                    z_from=0,
                    z_to=record.slices,
                    source="model",
                    runs=0,
                )
            )
        else:
            rows.append(segmentation_box(id, study.slice_box, record.rows, record.columns))
    path = tmp_path_factory.mktemp("boxes") / "study_boxes.parquet"
    write_table(path, pd.DataFrame(rows), "truth", {})
    return path


@pytest.fixture(scope="session")
def pseudo(tiny_cache, tmp_path_factory):
    """Pseudo labels from the segmentations, zeros for the other studies."""
    cache = Cache(tiny_cache)
    known = ratio_truth(cache.study(id) for id in cache.ids if cache.record(id).segmentation_digest)
    other = [
        pd.DataFrame({"id": id, "z_index": range(cache.record(id).slices)}) for id in set(cache.ids) - set(known["id"])
    ]
    path = tmp_path_factory.mktemp("pseudo") / "pseudo_labels.parquet"
    write_table(
        path, pseudo_labels(pd.concat([known, *other], ignore_index=True).fillna(0.0), cache.labels), "truth", {}
    )
    return path


@pytest.fixture(scope="session")
def chain(tiny_cache, tiny_settings, tmp_path_factory):
    """(RUNS, stage -> run folders) of the whole pipeline over both folds; made once, and copied for each test worker."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "chain"
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.is_dir():
            _run_all_stages(tiny_cache, tiny_settings, Path(f"{shared}.part"))
            Path(f"{shared}.part").rename(shared)
    out = shutil.copytree(shared, tmp_path_factory.mktemp("chain") / "runs")
    return out, {stage: sorted(out.glob(f"{stage}-*/fold*-seed1")) for stage in stage_names()}


@pytest.fixture(scope="session")
def tabled(chain, tiny_cache, tmp_path_factory) -> Path:
    """The runs of `chain` and all their tables, moved away from where they were made."""
    out = shutil.copytree(chain[0], tmp_path_factory.mktemp("tabled") / "runs")
    shutil.rmtree(out / "tables")
    from trainer.tables.__main__ import main

    assert main([str(out), f"cache={tiny_cache}"]) == 0
    return out


def _run_all_stages(cache: Path, settings: Path, out: Path) -> None:
    from trainer import train
    from trainer.tables import make

    opened, common = Cache(cache), dict(cache=cache, out=out, config=settings)
    make.make("study_boxes", out, opened, [train(stage="bbox", fold=fold, **common) for fold in (0, 1)])
    common["boxes"] = out / "tables/study_boxes.parquet"
    ratios = [train(stage="vertebrae", variant="04A", fold=fold, **common) for fold in (0, 1)]
    make.make("vertebra_ratios", out, opened, ratios)
    make.make("pseudo_labels", out, opened, [])
    pseudo = out / "tables/pseudo_labels.parquet"
    backbones = [train(stage="slice_fracture", fold=fold, pseudo=pseudo, **common) for fold in (0, 1)]
    studies = [train(stage="study_fracture", fold=fold, backbone=backbones[fold], **common) for fold in (0, 1)]
    make.make("study_predictions", out, opened, studies)


@pytest.fixture(scope="session")
def models(tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path_factory):
    """RUNS with one bbox and two study_fracture runs that hold fold 0 out."""
    out = tmp_path_factory.mktemp("models")
    common = dict(cache=tiny_cache, out=out, config=tiny_settings, fold=0)
    train(stage="bbox", **common)
    common["boxes"] = true_boxes
    backbone = train(stage="slice_fracture", pseudo=pseudo, **common, **{"train.epochs": 1})
    for seed in (1, 2):
        train(stage="study_fracture", backbone=backbone, seed=seed, **common)
    return out
