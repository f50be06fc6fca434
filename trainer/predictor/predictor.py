"""From a decoded study to the answer of the models."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache

from cache_schema import LEVELS, TARGETS, Study
from cache_schema.columns import FRACTURES, FULL_FRAME
from cache_schema.errors import CspineError, UsageError
from cache_schema.machine import Machine, this_machine
from cache_schema.memory import MemoryCache, held
from trainer.answers.answer import Answer, SuspectedSlice
from trainer.answers.flagged import flagged
from trainer.data.chunk_reader import Recent
from trainer.inference import NotFinite, predict
from trainer.models import Network, StudyFractureModel, load_strictly
from trainer.predictor.computing import Computing, Device, this_device
from trainer.predictor.scans import Scans, source_of
from trainer.process.command import say
from trainer.runs.inputs import Inputs
from trainer.session import Session
from trainer.tables.boxes import study_boxes
from trainer.tables.pooling import mean_over_runs
from trainer.tables.studies import suspected_slices
from trainer.trained.models import BOXES, SLICES, STUDIES, Models, TrainedModel, check_computing
from trainer.trained.open_models import open_models
from trainer.tuning import micro_batch

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

    def __init__(
        self,
        models: str | Path | Models,
        *,
        machine: Machine | None = None,
        device: Device | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Mapping[str, Any],
    ):
        """machine, device: what may be used; by default what is found. clock: in seconds, for `spent`."""
        check_computing(settings)
        self.models = models if isinstance(models, Models) else open_models(Path(models))
        machine = machine or this_machine()
        self.computing = Computing(settings, device or this_device(machine), machine)
        for model in self.models.every:
            self.computing.settings(model)  # a wrong value is an error before anything is decoded
        self._range, self._clock = self.models.range, clock
        self._networks = Recent(self.computing.device.memory // SHARE, _bytes)
        weights = sum(model.bytes for model in self.models.every)
        self.together = 1 if weights <= self._networks.budget else TOGETHER
        """number of studies that are answered at the same time"""
        self.spent = defaultdict[str, float](float)
        """seconds of each model so far; with its loading, where not all stay in memory"""
        self._loading = 0.0

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
        settings = self.computing.settings(model)
        inputs = Inputs(settings, cache)
        if boxes is not None:
            inputs.boxes = boxes.assign(found=boxes["source"] != FULL_FRAME).set_index("id")
        return Session(settings, inputs, "", quiet=True)

    def _loaded(self, model: TrainedModel) -> Network:
        started = self._clock()
        session = self.session(model, MemoryCache([]), None)
        network = session.stage.model()
        load_strictly(network, model.tensors(), "this variant", model.where)
        network = network.to(session.accelerator.device).eval()
        self._loading += self._clock() - started
        return network

    def _predictions(
        self, models: Sequence[TrainedModel], cache: MemoryCache, boxes: pd.DataFrame | None, rows: Rows | None
    ) -> list[pd.DataFrame]:
        found = []
        for model in models:
            started, loading = self._clock(), self._loading
            found.append(self._prediction(model, cache, boxes))
            once = self._loading - loading if self.together == 1 else 0.0
            self.spent[model.name] += self._clock() - started - once
            if rows is not None:
                rows(model, found[-1])
        return found

    def _prediction(self, model: TrainedModel, cache: MemoryCache, boxes: pd.DataFrame | None) -> pd.DataFrame:
        """One model's table. Tries again with fewer images at once for as long as memory lacks, and in float32 where half
        precision gave no numbers."""
        while True:
            try:
                return self._tried(model, cache, boxes)
            except NotFinite:
                if not self.computing.use_full_precision(model):
                    raise
                line = "half precision gave numbers that are not finite: goes on in float32"
            except Exception as error:
                if not lacks_memory(error):
                    raise
                line = self._need_less(model)
            say(f"{model.name}: {line}")
            clear_device_cache(garbage_collection=True)  # here: while an error is handled, it holds what was computed

    def _tried(self, model: TrainedModel, cache: MemoryCache, boxes: pd.DataFrame | None) -> pd.DataFrame:
        with closing(self.session(model, cache, boxes)) as session:
            network = self.network(model)
            if isinstance(network, StudyFractureModel):
                network.chunk = session.settings.model.chunk
            table = predict(session, network, images=self.computing.images(model))
        assert table is not None  # this process is the main one
        return table

    def _need_less(self, model: TrainedModel) -> str:
        """Takes less memory from now on, and says how. Raises CspineError if there is nothing left to do without."""
        if self.computing.halve(model):
            return f"out of memory: goes on with {self.computing.images(model)} images at once"
        if len(self._networks.values) > 1:
            self._networks = Recent(self._networks.budget, _bytes)
            return "out of memory: loads the other models again when they are needed"
        line, do = (
            f"not even one image fits the memory of {self.computing.device.name}",
            "use a device with more memory",
        )
        raise CspineError(f"{model.name}: {line}", do=do)

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


def lacks_memory(error: Exception) -> bool:
    """Whether the device's memory, or this machine's, is full."""
    return isinstance(error, MemoryError) or micro_batch.lacks_memory(error)
