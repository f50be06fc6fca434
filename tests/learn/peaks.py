"""Where heat maps peak: for each fractured level, on the slice that its held-out stage-3 run names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from cache_schema import Cache, read_table
from cache_schema.columns import BOX
from trainer.answers.answer import SuspectedSlice
from trainer.data.augment import Augmentation
from trainer.data.image import make_image
from trainer.data.order import Evaluation
from trainer.data.source import Source
from trainer.models import SliceFractureModel
from trainer.models.backbone import Backbone
from trainer.predictor.heat_maps import heat_map, window_around
from trainer.report.heat_map import HeatMap
from trainer.runs.file_names import MODEL_FILE, PREDICTIONS
from trainer.runs.identity import weights_config
from trainer.tables.studies import suspected_slices

SHUFFLES = 4
"""of each network: one alone may by chance look where bone is"""
COLUMNS = ["made_by", "id", "level", "z_index", "x", "y"]


def peaks(cache: Cache, runs: Path, boxes: pd.DataFrame) -> pd.DataFrame:
    """made_by, id, level, z_index, x, y: of heat maps, and of two controls: random points of the square that the network
    is shown, and heat maps of the same network with the numbers of each tensor shuffled."""
    found = [row for run in sorted(runs.glob("slice_fracture-*/*")) for row in _peaks(run, cache, boxes)]
    return pd.DataFrame(found, columns=COLUMNS)


def _peaks(run: Path, cache: Cache, boxes: pd.DataFrame) -> Iterator[tuple]:
    _, config = weights_config(run)
    model, data, rng = config["model"], config["data"], np.random.default_rng(0)
    weights, networks = load_file(run / MODEL_FILE), []
    for number in range(1 + SHUFFLES):
        network = SliceFractureModel(Backbone(model["name"]), 0, model["positional"])
        network.load_state_dict({name: shuffle(each, rng) for name, each in weights.items()} if number else weights)
        networks.append(("shuffled weights" if number else "heat map", network))
    broken, own_boxes = cache.labels.set_index("id"), boxes.set_index("id")[BOX].astype(int)
    for row in suspected_slices([read_table(run / PREDICTIONS)]).itertuples():
        if broken.at[row.id, row.level] != 1:
            continue
        slices = cache.record(row.id).slices
        item, step = window_around(row.id, slices, data["frames"], data["eval_stride"], row.z_index)
        box = {row.id: tuple(own_boxes.loc[row.id])}
        source = Source(cache, Evaluation([item], 1), Augmentation(data["size"]), box, data["intensity"])
        images = make_image(source.read(0), data["size"], data["interpolation"])
        square, suspected = source.squares[row.id], SuspectedSlice(row.level, row.z_index, 0, row.fracture)
        for made_by, each in networks:
            heat = HeatMap(suspected, heat_map(each, images, step, row.level), square)
            yield made_by, row.id, row.level, row.z_index, *heat.peak()
        x0, y0, x1, y1 = square
        yield "random points", row.id, row.level, row.z_index, rng.uniform(x0, x1), rng.uniform(y0, y1)


def shuffle(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The same numbers in another order."""
    return tensor.flatten()[torch.from_numpy(rng.permutation(tensor.numel()))].view_as(tensor)
