"""Heat maps of an answer's most suspicious slices."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from cache_schema import Study
from cache_schema.memory import MemoryCache
from trainer.answers.answer import Answer
from trainer.data.image import make_image
from trainer.data.order import Evaluation
from trainer.data.source import Source
from trainer.models import SliceFractureModel
from trainer.report.heat_maps import HeatMap, heat_map, window_around
from trainer.tables.boxes import COLUMNS
from trainer.trained.models import SLICES

if TYPE_CHECKING:
    from trainer.predictor.predictor import Predictor

COUNT = 3
"""slices that get a heat map: those with the highest fracture values"""


def heat_maps(predictor: Predictor, study: Study, answer: Answer, count: int = COUNT) -> list[HeatMap]:
    """By the first slice model, which takes part in naming the slices; none without slice models.

    study: the answer's, with its pixels. Levels outside the field of view get none.
    """
    named = [each for each in answer.slices if each.level not in answer.outside]
    chosen = sorted(named, key=lambda each: -each.fracture)[:count]
    if not chosen:
        return []
    model = predictor.models.by_stage[SLICES][0]
    boxes = pd.DataFrame([(answer.id, *answer.box, *answer.z_range, answer.box_source, 0)], columns=COLUMNS)
    cache, network = (
        MemoryCache([study], predictor.models.pixel_hash),
        cast(SliceFractureModel, predictor.network(model)),
    )
    found = []
    with closing(predictor.session(model, cache, boxes)) as session:
        data, slices = session.settings.data, study.record.slices
        for each in chosen:
            item, step = window_around(study.id, slices, data.frames, data.eval_stride, each.z_index)
            own, shown = session.inputs.crop_boxes([study.id]), session.no_augmentation()
            source = Source(cache, Evaluation([item], 1), shown, own, data.intensity)
            images = make_image(source.read(0), data.size, data.interpolation)
            relative = np.maximum(item.z_index(), 0) / max(1, slices - 1)
            own_relative = relative if session.settings.model.positional == "relative" else None
            values = heat_map(network, images, step, each.level, own_relative)
            found.append(HeatMap(each, values, source.squares[study.id]))
    return found
