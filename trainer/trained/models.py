"""A set of trained models, wherever it is kept."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_schema.documents import digest_of
from cache_schema.errors import UsageError
from trainer.answers.anatomy import LevelsFound
from trainer.answers.unlike import RANGE, TrainingRange, merged
from trainer.runs.weights import TRAIN_AGAIN
from trainer.scores.calibration import Calibration
from trainer.settings.keyvalue import merge
from trainer.settings.settings import Settings, check_keys, validate
from trainer.settings.stage_registry import stage_class
from trainer.tables.settings import TableSettings

if TYPE_CHECKING:
    from torch import Tensor

BOXES, SLICES, STUDIES = "bbox", "slice_fracture", "study_fracture"
"""the stages that prediction uses; without slice models there are no curves and no suspected slices"""
USED = (BOXES, SLICES, STUDIES)
COMPUTING = {
    "model": ("chunk",),
    "data": ("loader", "workers", "resident", "ram_gb"),
    "train": ("eval_batch", "precision", "threads"),
}
"""settings that may differ from those of the training"""
MACHINE = {"model": ("weights_file",), "data": (*COMPUTING["data"], "on_error"), "train": ("threads",)}
"""settings of the training machine, which a prediction ignores"""
NOWHERE = Path("memory")
"""stands for paths that a prediction in memory does not use"""


@dataclass(frozen=True)
class TrainedModel:
    """One run's weights and what they were trained with."""

    name: str
    """`<stage>-<variant>/fold<k>-seed<s>`"""
    config: Mapping[str, Any]
    """the settings of its training"""
    metadata: Mapping[str, str]
    """of its weights file"""
    digest: str
    """of its tensors and metadata"""
    bytes: int
    """of its tensors"""
    tensors: "Callable[[], dict[str, Tensor]]"
    """reads them. Raises CspineError if they are damaged"""
    where: Path
    seen: Callable[[Collection[str]], dict[str, set[str]]]
    """ids -> label, segmentation -> those of studies whose label or segmentation reached its weights"""

    @property
    def stage(self) -> str:
        return str(self.config["stage"])

    def settings(self, given: Mapping[str, Any], *, gpu: bool) -> Settings:
        """The settings of the training, changed for a prediction in memory. given: settings by section that override them."""
        values = {name: value for name, value in self.config.items() if name in Settings.model_fields}
        for section, names in MACHINE.items():
            values[section] = {name: value for name, value in values[section].items() if name not in names}
        if not gpu:
            values["train"] = {name: value for name, value in values["train"].items() if name != "precision"}
            # the same images, without starting DALI
            values["data"] = values["data"] | {"loader": "plain", "workers": 0}
        places = dict.fromkeys(("cache", "out", "weights", "boxes"), NOWHERE)
        others = {"mode": "predict", "split": "all", "tracker": "none", "deterministic": False}
        return validate(merge(values, places, others, {"pseudo": None, "backbone": None}, given))


@dataclass(frozen=True)
class Models:
    """The models that answer together, and what was learned about them."""

    where: Path
    by_stage: Mapping[str, tuple[TrainedModel, ...]]
    thresholds: TableSettings
    """of study boxes"""
    pixel_hash: str
    """of the caches that they were trained on"""
    calibration: Calibration | None = None
    """of the mean of the study models; None if there is none"""
    levels_found: LevelsFound | None = None
    """by the slice models; None if they hold nothing out"""
    notes: tuple[str, ...] = field(default_factory=tuple)
    """lines about runs that are left out, and what is missing"""
    leave_out: tuple[str, ...] = ()
    """names of models in the order in which they may be left out when time is short"""
    priors: Mapping[str, float | None] = field(default_factory=dict)
    """each target's prevalence among the studies with out-of-fold predictions; None where it is not known"""

    @property
    def digest(self) -> str:
        """Of all that decides an answer."""
        models = [(model.name, model.digest) for model in self.every]
        learned = self.calibration and self.calibration.document(), self.levels_found
        return digest_of([models, self.thresholds.model_dump(mode="json"), *learned])

    @property
    def every(self) -> list[TrainedModel]:
        """All models, by stage."""
        return [model for models in self.by_stage.values() for model in models]

    def seen(self, ids: Collection[str]) -> set[str]:
        """Those of studies whose label or segmentation reached the models."""
        return set().union(*(each for model in self.every for each in model.seen(ids).values()))

    def of_fold(self, fold: int) -> "Models":
        """The models that hold this fold out. Raises UsageError if a stage has none."""
        own = {
            stage: tuple(model for model in models if model.metadata["fold"] == str(fold))
            for stage, models in self.by_stage.items()
        }
        if missing := [stage for stage, models in own.items() if not models]:
            line = f"no {missing[0]} model holds fold {fold} out"
            raise UsageError(line, where=self.where, do="give models of every fold, or leave held_out=true out")
        return replace(self, by_stage=own)

    def without(self, names: Collection[str]) -> "Models":
        """The others. At least one of each stage must be left."""
        kept = {
            stage: tuple(model for model in models if model.name not in names)
            for stage, models in self.by_stage.items()
        }
        assert all(kept.values()), "a stage's first model always stays"
        return replace(self, by_stage=kept)

    @property
    def range(self) -> TrainingRange:
        """The image statistics of all studies that the models were trained on, as far as they are recorded."""
        return merged(TrainingRange.from_json(each.metadata[RANGE]) for each in self.every if RANGE in each.metadata)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """stage -> names of its models."""
        return {stage: tuple(model.name for model in models) for stage, models in self.by_stage.items()}


def leave_out_order(models: Mapping[str, Collection[TrainedModel]]) -> list[str]:
    """Names of models in the order in which they may be left out when time is short: a stage's first model always stays.

    First slice models, which decide no probability, then those of boxes, then study models; later seeds and folds first.
    """
    order = []
    for stage in (SLICES, BOXES, STUDIES):
        ordered = sorted(models.get(stage, ()), key=lambda model: (int(model.metadata["seed"]), model.name))
        order += [model.name for model in reversed(ordered[1:])]
    return order


def priors_of(calibration: Calibration | None) -> dict[str, float | None]:
    """Each target's prevalence among the studies with out-of-fold predictions."""
    return {} if calibration is None else {name: target.prevalence for name, target in calibration.targets.items()}


def check_models(found: Collection[TrainedModel]) -> str:
    """The pixel_hash that all models share. Raises UsageError for models of other versions, or of different pixels."""
    for model in found:
        now = str(stage_class(model.stage).version)
        if (version := model.metadata.get("version")) != now:
            what = f"was trained by version {version} of {model.stage}"
            raise UsageError(what, where=model.where, expected=f"version {now}", do=TRAIN_AGAIN)
    hashes = {model.metadata["pixel_hash"]: model for model in found}
    if len(hashes) > 1:
        (others, _), (one, model) = list(hashes.items())[:2]
        raise UsageError(f"was trained with pixel_hash={one}, others with {others}", where=model.where)
    return next(iter(hashes))


def check_computing(given: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that are fixed by the training, and for unknown ones."""
    check_keys(given)
    for section, values in given.items():
        for name in values:
            if name not in COMPUTING.get(section, ()):
                names = ", ".join(f"{key}.{each}" for key, names in COMPUTING.items() for each in names)
                raise UsageError(f"{section}.{name} is fixed by the training", expected=f"one of {names}")
