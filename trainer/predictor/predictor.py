"""From a decoded study to the answer of the models."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cache_schema import LEVELS, TARGETS, Study
from cache_schema.columns import FRACTURES, FULL_FRAME
from cache_schema.errors import UsageError
from cache_schema.memory import MemoryCache, held
from trainer.answers.answer import Answer, SuspectedSlice
from trainer.answers.flagged import flagged
from trainer.data.chunk_reader import Recent
from trainer.inference import predict
from trainer.models import Network, load_strictly
from trainer.predictor.scans import Scans, source_of
from trainer.runs.inputs import Inputs
from trainer.session import Session, on_gpu
from trainer.tables.boxes import study_boxes
from trainer.tables.pooling import mean_over_runs
from trainer.tables.studies import suspected_slices
from trainer.trained.models import BOXES, SLICES, STUDIES, Models, TrainedModel, check_computing
from trainer.trained.open_models import open_models

TOGETHER = 8
"""studies that each model answers in its turn, if memory does not hold all models at once"""
SHARE = 4
"""a quarter of the free memory is for weights, the rest for images and activations"""

Rows = Callable[[TrainedModel, pd.DataFrame], None]
"""called with a model and its prediction table for some studies"""


class Predictor:
    """`Predictor("FILE.cspine")("DICOM folder, zip or Study")` -> Answer. Also takes the out= of a plan.

    Networks stay in memory as far as it holds them. settings: as on the command line of `trainer predict`, such as
    train={"eval_batch": 4}. Raises CspineError for models or settings that do not fit.
    """

    def __init__(self, models: str | Path | Models, **settings: Mapping[str, Any]):
        check_computing(settings)
        self.models = models if isinstance(models, Models) else open_models(Path(models))
        self._given, self._gpu = settings, on_gpu()
        for model in self.models.every:
            model.settings(settings, gpu=self._gpu)  # a wrong value is an error before anything is decoded
        self._range = self.models.range
        self._networks = Recent(_memory(self._gpu) // SHARE, _bytes)
        weights = sum(model.bytes for model in self.models.every)
        self.together = 1 if weights <= self._networks.budget else TOGETHER
        """number of studies that are answered at the same time"""

    def __call__(self, source: str | Path | Study) -> Answer:
        """The answer for one study. source: a folder or zip of DICOM files of one study, or a Study.

        Raises UsageError if the source does not hold exactly one study that can be read.
        """
        if isinstance(source, Study):
            return self.answered([held(source)])[0]
        with Scans(source_of(source)) as scans:
            if len(scans.ids) != 1:
                line = f"holds {len(scans.ids)} studies that can be read"
                raise UsageError(line, where=source, expected="one", do="use Predictor.answers for several")
            found = list(self.answers(scans.studies()))
            if not found:
                raise UsageError(next(iter(scans.refused.values())).message, where=scans.ids[0])
            return found[0]

    def answers(self, studies: Iterable[Study]) -> Iterator[Answer]:
        """The answers for studies in their order; of at most `together` studies the pixels are in memory."""
        return (answer for _, answer in self.with_studies(studies))

    def with_studies(self, studies: Iterable[Study], rows: Rows | None = None) -> Iterator[tuple[Study, Answer]]:
        """The same, each with its study, whose pixels are in memory."""
        studies = iter(studies)
        while batch := [held(study) for study in islice(studies, self.together)]:
            yield from zip(batch, self.answered(batch, rows), strict=True)
            del batch

    def answered(self, studies: Sequence[Study], rows: Rows | None = None) -> list[Answer]:
        """The answers for studies that are held in memory."""
        cache, by_stage = MemoryCache(studies, self.models.pixel_hash), self.models.by_stage
        index = cache.index[["id", "rows", "columns", "slices"]]
        started = time.perf_counter()
        found = self._predictions(by_stage[BOXES], cache, None, rows)
        boxes = study_boxes(found, index, **dict(self.models.thresholds))
        boxed = time.perf_counter()
        slices = self._predictions(by_stage.get(SLICES, ()), cache, boxes, rows)
        curves = mean_over_runs(slices, ["id", "z_index"]) if slices else None
        where = suspected_slices(slices) if slices else None
        sliced = time.perf_counter()
        outputs = mean_over_runs(self._predictions(by_stage[STUDIES], cache, boxes, rows), ["id"]).set_index("id")
        ended, count = time.perf_counter(), len(studies)
        seconds = {"boxes": boxed - started, "slices": sliced - boxed, "study": ended - sliced}
        return [
            flagged(
                study,
                self._answer(
                    study,
                    boxes.set_index("id").loc[study.id],
                    outputs.loc[study.id],
                    None if curves is None else curves[curves["id"] == study.id],
                    None if where is None else where[where["id"] == study.id],
                    {name: value / count for name, value in seconds.items()},
                ),
                self._range,
                self.models.levels_found,
            )
            for study in studies
        ]

    def network(self, model: TrainedModel) -> Network:
        """The model's network on this device, in evaluation mode."""
        return self._networks.get(model.name, self._loaded, model)

    def session(self, model: TrainedModel, cache: MemoryCache, boxes: pd.DataFrame | None) -> Session:
        """What a prediction of studies in memory needs. boxes: a study_boxes table."""
        settings = model.settings(self._given, gpu=self._gpu)
        inputs = Inputs(settings, cache)
        if boxes is not None:
            inputs.boxes = boxes.assign(found=boxes["source"] != FULL_FRAME).set_index("id")
        return Session(settings, inputs, "", quiet=True)

    def _loaded(self, model: TrainedModel) -> Network:
        session = self.session(model, MemoryCache([]), None)
        network = session.stage.model()
        load_strictly(network, model.tensors(), "this variant", model.where)
        return network.to(session.accelerator.device).eval()

    def _predictions(
        self, models: Sequence[TrainedModel], cache: MemoryCache, boxes: pd.DataFrame | None, rows: Rows | None
    ) -> list[pd.DataFrame]:
        found = []
        for model in models:
            with closing(self.session(model, cache, boxes)) as session:
                table = predict(session, self.network(model))
            assert table is not None  # this process is the main one
            found.append(table)
            if rows is not None:
                rows(model, table)
        return found

    def _answer(
        self,
        study: Study,
        box: pd.Series,
        outputs: pd.Series,
        curves: pd.DataFrame | None,
        where: pd.DataFrame | None,
        seconds: dict[str, float],
    ) -> Answer:
        slices = (
            ()
            if where is None
            else tuple(
                SuspectedSlice(
                    each.level, int(each.z_index), int(study.slice_number[each.z_index]), float(each.fracture)
                )
                for each in where.itertuples()
            )
        )
        values = {target: float(outputs[target]) for target in TARGETS}
        calibration = self.models.calibration
        columns = ["z_index", *LEVELS, *FRACTURES, "any_frac"]
        return Answer(
            record=study.record,
            z=study.z,
            outputs=values,
            box=(int(box["x0"]), int(box["y0"]), int(box["x1"]), int(box["y1"])),
            z_range=(int(box["z_from"]), int(box["z_to"])),
            box_source=str(box["source"]),
            models=self.models.names,
            calibrated=None if calibration is None else calibration.apply(values),
            curves=None if curves is None else curves[columns].reset_index(drop=True),
            slices=slices,
            seconds={"decode": getattr(study.pixels, "seconds", 0.0), **seconds},
        )


def _bytes(network: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _memory(gpu: bool) -> int:
    """Free bytes of the memory that the networks compute in."""
    if gpu:
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
