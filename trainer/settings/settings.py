"""The settings of a run: names, types, bounds and meaning. Does not import torch."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cache_schema.errors import UsageError
from cache_schema.places import check_place
from cache_schema.store_path import Place, place_of
from trainer.settings.keyvalue import require_known
from trainer.settings.needs import check_needs
from trainer.settings.stage_registry import stage_class

if TYPE_CHECKING:
    from trainer.stages.base import Stage

SOURCES = {"boxes": "TABLE", "pseudo": "TABLE", "backbone": "RUN"}
"""settings that name what a run is made from besides its cache, and their placeholders"""
PLACEHOLDERS = {"cache": "CACHE", "out": "RUNS", **SOURCES}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_local(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and info.field_name != "cache":
            check_place(value)
        return value


Model = TypeVar("Model", bound=Section)


class ModelSettings(Section):
    name: str = ""
    """timm model with its pretrained tag pinned (reference 6)"""
    pretrained: bool = True
    weights_file: Path | None = None
    """a local file with the backbone's pretrained weights, for machines without access to a model hub"""
    dropout: float = Field(0.0, ge=0, lt=1)
    positional: Literal["index", "relative"] = "index"
    """index: constant features for each position in the window, as in the reference (6.2)"""
    batch_norm: Literal["eval", "train"] = "eval"
    """study_fracture only. train: running statistics of the frozen backbone change, as in the reference (Q4)"""
    mask_pool: bool = False
    """study_fracture only. true: LSTM and max pool ignore padded steps (in the reference they do not, Q29)"""
    chunk: int = Field(64, ge=2, le=10_000)
    """study_fracture only: images in one forward pass of the frozen CNN"""


class DataSettings(Section):
    size: int = Field(512, ge=32, le=4096)
    """side of the square image, in pixels"""
    frames: int = Field(96, ge=3, le=3000, multiple_of=3)
    """slices in a slice window"""
    stride: Annotated[int, Field(ge=1, le=3000)] | Literal["adaptive"] = 12
    """slices between training windows; adaptive: round(2000 / length of the study's z-range) (reference 4.2)"""
    eval_stride: int = Field(16, ge=1, le=3000)
    thin: float = Field(0.0, ge=0, le=1)
    """probability that a training window is thinned along z by a step of 2 to 4 (reference 4.2)"""
    crop: bool = False
    """crop to the square around the study's box; needs boxes="""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    intensity: Literal["per_slice", "fixed"] = "per_slice"
    """per_slice: stretch each slice's crop to 0..255, as in the reference; fixed: keep the cache's intensity window"""
    loader: Literal["dali", "plain"] = "dali"
    """plain: the same images with OpenCV, where DALI is not available"""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """reader processes per training process; 0: read in the training process. auto: on a GPU one for each free core, at most
    six; on a CPU 0"""
    resident: Literal["disk", "ram", "gpu"] = "disk"
    """ram: each reader process caches decoded chunks, up to data.ram_gb; gpu: all crops are loaded into GPU memory once"""
    ram_gb: float = Field(8.0, gt=0, le=100_000)
    store_cache: Path | None = None
    """a folder on this machine that keeps what was read of a cache in a store: shared by processes and runs"""
    store_cache_gb: float = Field(100.0, gt=0, le=1_000_000)
    """once so much is kept, files that nobody has read for a day make room; others stay"""
    on_error: Literal["stop", "skip"] = "stop"
    """on a training item that cannot be read: stop, or replace it by another and count it; evaluation always stops"""
    bank: int = Field(0, ge=0, le=1000)
    """study_fracture only: features of this many augmentations are cached on disk; epoch e uses augmentation e mod bank. 0: none"""


class AugmentSettings(Section):
    """Probabilities and ranges of reference section 5. Drawn once per item, for all its frames."""

    reverse: float = Field(0.0, ge=0, le=1)
    """probability of reversing the three slices of a triplet (reference Q1)"""
    flip: float = Field(0.5, ge=0, le=1)
    contrast: float = Field(0.75, ge=0, le=1)
    contrast_range: float = Field(0.2, ge=0, lt=1)
    affine: float = Field(0.75, ge=0, le=1)
    shift: float = Field(0.2, ge=0, le=1)
    scale: float = Field(0.2, ge=0, lt=1)
    rotate: float = Field(20.0, ge=0, le=180)
    """degrees"""
    warp: float = Field(0.5, ge=0, le=1)
    """probability of either a grid distortion or a random affine, at equal chance"""
    cutout: float = Field(1.0, ge=0, le=1)
    holes: int = Field(8, ge=0, le=1000)
    hole_size: float = Field(0.1, ge=0, le=1)
    """side of a hole as a fraction of the image"""


class TrainSettings(Section):
    epochs: int = Field(3, ge=1, le=100_000)
    batch: int = Field(16, ge=1, le=100_000)
    """items per optimiser step, over all processes"""
    micro_batch: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = 2
    """items per process and forward pass; gradients are accumulated up to `batch`. auto: as many as fit in GPU memory; on a
    CPU or with deterministic=true the number in configs/<stage>.yaml"""
    autotune: bool = True
    """on a GPU, spend up to a minute on finding the fastest way to run the CNN; off with deterministic=true"""
    eval_batch: int = Field(2, ge=1, le=10_000)
    lr: float = Field(3e-4, gt=0, le=10)
    eps_form: Literal["reference", "torch"] = "reference"
    """whether AdamW adds epsilon to the root of the second moment before (reference) or after (torch) bias correction"""
    weight_decay: float = Field(5e-4, ge=0, le=10)
    warmup: float = Field(0.1, ge=0, le=1)
    """fraction of all samples during which the learning rate rises"""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """auto: fp16 on a GPU as in the reference, float32 on a CPU"""
    checkpoint_minutes: float = Field(10.0, ge=0, le=1_000_000)
    evaluate_every: int = Field(1, ge=0, le=1_000_000)
    """epochs between evaluations on the held-out fold; 0: only at the end"""
    log_every: int = Field(10, ge=1, le=1_000_000)
    """optimiser steps between logged lines"""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of torch and OpenCV per process; 0: their defaults"""


class Settings(Section):
    stage: str
    variant: str
    cache: Annotated[Place, BeforeValidator(place_of)]
    out: Path
    mode: Literal["train", "predict"] = "train"
    fold: Annotated[int, Field(ge=0, le=10_000)] | Literal["all"] = 0
    seed: int = Field(1, ge=0, lt=2**32)
    boxes: Path | None = None
    """a study_boxes table, or `cache` for the boxes stored in the cache"""
    pseudo: Path | None = None
    backbone: Path | None = None
    """a finished slice_fracture run, whose backbone study_fracture freezes"""
    weights: Path | None = None
    split: Literal["held_out", "all"] = "held_out"
    deterministic: bool = False
    tracker: Literal[
        "none", "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"
    ] = "tensorboard"
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    train: TrainSettings = TrainSettings()

    @property
    def run_dir(self) -> Path:
        return self.out / f"{self.stage}-{self.variant}" / f"fold{self.fold}-seed{self.seed}"

    @property
    def needs_boxes(self) -> bool:
        """Whether study boxes decide what is read: crops, the stride between windows, a study's z-range."""
        return self.data.crop or self.data.stride == "adaptive" or self.facts.needs_boxes

    def sources(self, *, training: bool = True) -> dict[str, Path | None]:
        """The SOURCES that this run reads, or with training=False those that a prediction reads; None if not given."""
        used = {"boxes": self.needs_boxes}
        used["pseudo"] = training and self.facts.learns_from == "pseudo_labels"
        used["backbone"] = training and self.facts.backbone is not None
        return {name: getattr(self, name) for name, needed in used.items() if needed}

    @property
    def facts(self) -> "type[Stage]":
        """The stage's class."""
        return stage_class(self.stage)

    @field_validator("stage")
    @classmethod
    def _known(cls, value: str) -> str:
        return stage_class(value).name

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def record(self) -> dict[str, Any]:
        """`dump` with absolute paths, symbolic links resolved: what a run writes about itself."""
        return map_paths(self.dump(), os.path.realpath)


def check_keys(
    given: Mapping[str, Any], model: type[Section] = Settings, prefix: str = "", where: object = None
) -> None:
    """Raises UsageError for unknown keys, and where a section is given as a value or a value as a section."""
    for key, value in given.items():
        name = prefix + key
        require_known(name, [prefix + each for each in model.model_fields], f"no setting {name}", where)
        section = _section(model.model_fields[key])
        if section is None and isinstance(value, Mapping):
            raise UsageError(f"{name} is a value, not a section", where=where)
        if section is not None:
            if not isinstance(value, Mapping):
                raise UsageError(f"{name} is a section", where=where, expected=f"{name}.<setting>=value")
            check_keys(value, section, f"{name}.", where)
        elif model.model_fields[key].annotation is str and not isinstance(value, str):
            raise UsageError(f"{name} is one word", where=where, expected=f"{name}=<word>")


def validate(values: Mapping[str, Any]) -> Settings:
    """Raises UsageError for a value that does not fit, and for one that the variant needs and that is not given."""
    settings = validated(Settings, values)
    check_needs(settings)
    return settings


def validated(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    """The values as a model. Raises UsageError for the first that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = {part for key in _fields(model) for part in key.split(".")}
        by_key: dict[str, list[ErrorDetails]] = {}
        for each in error.errors():  # `loc` also holds the names of a union's branches
            by_key.setdefault(".".join(str(part) for part in each["loc"] if part in known), []).append(each)
        key, found = next(iter(by_key.items()))
        wanted = [each["msg"].lower().removeprefix("input should be ").partition(", unable")[0] for each in found]
        line = f"{prefix}{key}={found[0].get('input')!r:.80} does not fit"
        raise UsageError(line, expected=" or ".join(wanted)) from None


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _fields(model: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """`section.name` -> field, of all settings."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = _section(field)
        found |= {prefix + name: field} if section is None else _fields(section, f"{prefix}{name}.")
    return found


PATHS = frozenset(
    name for name, field in _fields(Settings).items() if Path in (field.annotation, *get_args(field.annotation))
)
"""settings whose values are paths"""


def is_path(name: str, value: object) -> bool:
    """Whether a setting holds a path: not a store's address, not `boxes=cache`, and not null."""
    if not isinstance(value, str) or name not in PATHS or (name == "cache" and "://" in value):
        return False
    return value not in ("", "null") and (name, value) != ("boxes", "cache")


def map_paths(values: Mapping[str, Any], change: Callable[[str], str], prefix: str = "") -> dict[str, Any]:
    """Nested settings with every path changed."""
    made = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, Mapping):
            value = map_paths(value, change, f"{name}.")
        elif is_path(name, value):
            value = change(value)
        made[key] = value
    return made
