"""A cache and finished runs of full size without pixels or training: all files that tables and exposure are made from.

The cache holds records, small arrays and the index, no chunk of pixels: it serves where only these are read. Runs have settings,
a key and digests as a training writes them, weights of one number, and random predictions of every row that they would have.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save

from cache_schema import LEVELS, TARGETS, Cache, CacheWriter, StudyRecord
from cache_schema.columns import BOX, FRACTURES
from cache_schema.documents import write_whole
from cache_schema.layout import GROUP
from cache_schema.study import SliceSpacing
from cache_schema.study_writer import StudyWriter
from cache_schema.tables import write_table
from cache_schema.writer import study_document
from trainer.data.items import Item, middles
from trainer.leakage import exposure
from trainer.plan.graph import Plan
from trainer.runs.file_names import CONFIG_FILE, MODEL_FILE
from trainer.runs.identity import config_file, prediction_inputs, predictions_path, run_key
from trainer.runs.inputs import Inputs
from trainer.runs.weights import sealed
from trainer.settings.layers import load
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_class
from trainer.tables import make

REFERENCE = Path("/work/shared/reference/train_folded_v01.csv")
"""labels and folds of the real studies, if they are there"""
FOLDS, FRAME, SEGMENTED = 5, 512, 87
"""as benchmarks.matrix has them, which imports torch"""
SHARES = (0.476, 0.072, 0.141, 0.036, 0.053, 0.080, 0.137, 0.195)
"""of patient_overall, C1..C7 among the real studies"""


def labels_of(studies: int) -> tuple[pd.DataFrame, str]:
    """id, patient_overall, C1..C7, fold of as many studies, and where they are from."""
    if REFERENCE.is_file():
        table = pd.read_csv(REFERENCE).rename(columns={"StudyInstanceUID": "id"})
        return table.head(studies), "the real labels and folds"
    random = np.random.default_rng(0)
    table = pd.DataFrame({"id": [f"1.2.826.0.1.3680043.{number}" for number in range(studies)]})
    table[list(TARGETS)] = random.random((studies, len(TARGETS))) < SHARES
    return table.astype(dict.fromkeys(TARGETS, int)).assign(fold=np.arange(studies) % FOLDS), "made-up labels and folds"


def slice_counts(studies: int, slices: int) -> np.ndarray:
    """(studies,) numbers of slices, which add up to `slices`."""
    drawn = np.random.default_rng(1).lognormal(0, 0.35, studies)
    ends = np.round(np.cumsum(drawn) / drawn.sum() * slices).astype(int)
    return np.diff(ends, prepend=0)


def write_cache(path: Path, labels: pd.DataFrame, slices: int) -> None:
    """A cache of these studies, every 23rd of them segmented, without pixels."""
    writer, counts = CacheWriter(path), slice_counts(len(labels), slices)
    every = len(labels) // min(SEGMENTED, len(labels))
    for number, (id, count) in enumerate(zip(labels["id"], counts.tolist(), strict=True)):
        arrays = {
            "z": -np.arange(count, dtype=np.float64),
            "slice_number": np.arange(1, count + 1, dtype=np.int32),
            "value_range": np.tile(np.array([0, 255], np.uint8), (count, 1)),
        }
        segmentation = None
        if number % every == 0 and number // every < SEGMENTED:
            arrays |= _segmentation(count)
            segmentation = hashlib.sha256(id.encode()).hexdigest()
        written = StudyWriter(partial(_write, path / id))
        for name, values in arrays.items():
            written.write_small(name, values)
        record = _record(id, count, segmentation)
        _write(path / id, GROUP, study_document(record, written.files))
    writer.finish(labels=labels)


def _write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def _segmentation(count: int) -> dict[str, np.ndarray]:
    """Boxes in the lower three quarters of the slices, where the levels follow each other."""
    first = count // 4
    box = np.full((count, 4), -1, np.int16)
    box[first:] = (150, 140, 350, 360)
    ratio = np.zeros((count, len(LEVELS)), np.float32)
    level = (np.arange(count - first) * len(LEVELS)) // (count - first)
    ratio[np.arange(first, count), level] = 1
    return {"slice_box": box, "vertebra_ratio": ratio}


def _record(id: str, count: int, segmentation: str | None) -> StudyRecord:
    return StudyRecord(
        id=id,
        study_uid=id,
        series_uid=f"{id}.1",
        rows=FRAME,
        columns=FRAME,
        slices=count,
        spacing=(1.0, 0.5, 0.5),
        pixel_spacing=(0.5, 0.5),
        slice_spacing=SliceSpacing(min=1.0, median=1.0, max=1.0),
        orientation=(1, 0, 0, 0, 1, 0),
        position=(0, 0, 0),
        transfer_syntax="1.2.840.10008.1.2.4.70",
        decoder="libjpeg",
        source_digest=hashlib.sha256(f"source {id}".encode()).hexdigest(),
        content_digest=hashlib.sha256(f"content {id}".encode()).hexdigest(),
        segmentation_digest=segmentation,
    )


def write_runs(plan: Plan, cache: Cache) -> None:
    """All runs and tables of the plan, each after its needs."""
    for node in plan.nodes:
        if node.is_run:
            write_run(load(node.words), cache)
        elif node.name != "scores":
            run_dirs = [plan[need].output for need in node.needs if plan[need].is_run]
            make.make(node.name, node.output.parents[1], cache, run_dirs)


def write_run(settings: Settings, cache: Cache, tensors: dict[str, np.ndarray] | None = None) -> None:
    """A finished run, with random predictions unless it holds nothing out. tensors: its weights; by default one number."""
    inputs, run_dir = Inputs(settings, cache), settings.run_dir
    key = run_key(settings, inputs)
    run_dir.mkdir(parents=True)
    write_whole(run_dir / CONFIG_FILE, config_file({"key": key, **settings.record(), "chosen": {}}))
    metadata = {
        "key": key,
        "version": str(settings.facts.version),
        "pixel_hash": cache.pixel_hash,
        "config": json.dumps(settings.record(), sort_keys=True),
        "inputs": json.dumps(inputs.training_digests(), sort_keys=True),
        "fold": str(settings.fold),
        "seed": str(settings.seed),
    }
    tensors = {"bias": np.array([settings.seed], np.float32)} if tensors is None else tensors
    write_whole(run_dir / MODEL_FILE, sealed(lambda metadata: save(tensors, metadata), metadata))
    exposure.keep(settings, key, exposure.of_run(settings, inputs))
    if settings.fold != "all":
        table = predictions(settings, inputs)
        write_table(predictions_path(settings), table, "made up", prediction_inputs(settings, inputs, key))


def predictions(settings: Settings, inputs: Inputs) -> pd.DataFrame:
    """Random predictions of every row that a run has of its held-out studies."""
    stage = stage_class(settings.stage)
    items = stage(settings, inputs).eval_items(inputs.eval_ids())
    by_study: dict[str, list[Item]] = {}
    for item in items:
        by_study.setdefault(item.id, []).append(item)
    rows = [_rows(stage.items, stage.learns_from == "pseudo_labels", own) for own in by_study.values()]
    counts = [len(windows) for windows in rows]
    table = pd.DataFrame({"id": np.repeat(list(by_study), counts)})
    if stage.items != "studies":
        windows = pd.concat(rows)
        table["z_index"] = windows.index.to_numpy(np.int64)
    random = np.random.default_rng([settings.seed, int(settings.fold), ord(settings.variant[-1])])
    if settings.stage == "bbox":
        table[BOX] = random.normal((150, 140, 350, 360), 5, (len(table), 4))
        table["has_box"] = random.random(len(table))
    elif settings.stage == "vertebrae":
        table["windows"] = windows.to_numpy(np.int64)
        table[list(LEVELS)] = random.random((len(table), len(LEVELS)))
    else:
        columns = list(TARGETS) if settings.stage == "study_fracture" else [*LEVELS, *FRACTURES, "any_frac"]
        table[columns] = random.random((len(table), len(columns)))
    return table


def _rows(items: str, middle_only: bool, own: list[Item]) -> pd.Series:
    """Of one study: z_index -> the number of items that predict it."""
    if items == "studies":
        return pd.Series([1])
    if items == "triplets":
        return pd.Series(1, [item.middle for item in own])
    shown = [middles(item.z_index()) if middle_only else item.z_index() for item in own]
    index = np.concatenate(shown)
    return pd.Series(index[index >= 0]).value_counts().sort_index()
