"""A cache of phantoms, and the tables that training needs, made from their ground truth."""

from pathlib import Path

import pandas as pd

from cache_schema import Cache, CacheWriter
from cache_schema.tables import write_table
from preprocess import studies
from preprocess.phantom.generate import write_phantom
from trainer.scores.truth import ratio_truth
from trainer.tables.boxes import segmentation_box
from trainer.tables.pseudo import pseudo_labels


def write_inputs(folder: Path, count: int, slices: int) -> list[str]:
    """Writes `count` segmented phantoms in two folds. Returns their settings: cache=, boxes=, pseudo=."""
    labels = write_phantom(folder / "rsna", count, slices, count, syntax="explicit", progress=False)
    labels = labels.rename(columns={"StudyInstanceUID": "id"}).sort_values("id")
    writer = CacheWriter(folder / "cache")
    for study in studies(folder / "rsna"):
        writer.publish(study)
    writer.finish(labels=labels.assign(fold=[place % 2 for place in range(len(labels))]))
    cache = Cache(folder / "cache")
    found = [cache.study(id) for id in cache.ids]
    boxes = [
        segmentation_box(study.id, study.slice_box, study.record.rows, study.record.columns)
        for study in found
        if study.slice_box is not None
    ]
    write_table(folder / "study_boxes.parquet", pd.DataFrame(boxes), "truth", {})
    write_table(folder / "pseudo_labels.parquet", pseudo_labels(ratio_truth(found), cache.labels), "truth", {})
    named = {"cache": "cache", "boxes": "study_boxes.parquet", "pseudo": "pseudo_labels.parquet"}
    return [f"{key}={folder / name}" for key, name in named.items()]
