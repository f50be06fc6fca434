"""Settings: defaults < configs/<stage>.yaml < its variant < config=FILE < command line, typed and checked in one place.

Nothing here imports torch, so that a wrong key is answered, and a finished run recognised, in a moment.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cache_schema.errors import UsageError
from cache_schema.places import check_place
from trainer.settings.keyvalue import given_twice, merge, nearest, parse_assignments, read_yaml, split_files
from trainer.settings.needs import check_needs, check_paths
from trainer.settings.paths import beside, check_folder

CONFIGS = (Path(__file__).resolve().parents[1] / "configs").resolve()
"""a link to the top level's in a checkout, a folder in a wheel"""
STAGES = ("bbox", "vertebrae", "slice_fracture", "study_fracture")
PLACES = {"cache": "CACHE", "out": "RUNS", "boxes": "TABLE", "pseudo": "TABLE", "backbone": "RUN"}
"""what stands in `shown` for what a run is made from"""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _on_this_machine(cls, value: Any) -> Any:
        if isinstance(value, str):
            check_place(value)
        return value


class ModelSettings(Section):
    name: str = ""
    """timm model with its pretrained tag pinned (reference 6)"""
    pretrained: bool = True
    weights_file: Path | None = None
    """a local file with the backbone's pretrained weights, for machines that reach no model hub"""
    dropout: float = Field(0.0, ge=0, lt=1)
    positional: Literal["index", "relative"] = "index"
    """index: constant features per position in the window, as the reference computes them (its 6.2)"""
    batch_norm: Literal["eval", "train"] = "eval"
    """study_fracture only. train: batch norm of the frozen backbone drifts as in the reference (Q4)"""
    mask_pool: bool = False
    """study_fracture only. true: LSTM and max pool leave padded steps out (the reference runs over them, Q29)"""
    chunk: int = Field(64, ge=2, le=10_000)
    """study_fracture only: pictures in one pass of the frozen CNN"""


class DataSettings(Section):
    size: int = Field(512, ge=32, le=4096)
    """side of the square picture, in pixels"""
    frames: int = Field(96, ge=3, le=3000, multiple_of=3)
    """slices in a slice window"""
    stride: Annotated[int, Field(ge=1, le=3000)] | Literal["adaptive"] = 12
    """slices between training windows; adaptive: round(2000 / length of the study's z-range) (reference 4.2)"""
    eval_stride: int = Field(16, ge=1, le=3000)
    thin: float = Field(0.0, ge=0, le=1)
    """probability that a training window is thinned along z by a step of 2 to 4 (reference 4.2)"""
    crop: bool = False
    """cut the square around the study's box; needs boxes="""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    intensity: Literal["per_slice", "fixed"] = "per_slice"
    """per_slice: stretch each slice's crop to 0..255 as the reference does; fixed: keep the cache's window"""
    loader: Literal["dali", "plain"] = "dali"
    """plain: the same pictures by OpenCV, where DALI cannot be had"""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """reading processes per training process; 0 reads in the training process. auto: on a GPU up to six, of the cores that
    training leaves; 0 on a CPU"""
    resident: Literal["disk", "ram", "gpu"] = "disk"
    """ram: each reading process keeps decoded chunks up to data.ram_gb; gpu: all crops lie in the GPU's memory, loaded once"""
    ram_gb: float = Field(8.0, gt=0, le=100_000)
    on_error: Literal["stop", "skip"] = "stop"
    """a training item that cannot be read: stop, or show another in its place and count it; evaluation always stops"""
    bank: int = Field(0, ge=0, le=1000)
    """study_fracture only: features of this many augmented draws are kept on disk, and epoch e is shown draw e mod bank; 0: none"""


class AugmentSettings(Section):
    """Probabilities and ranges of reference section 5; one draw per item, the same for all its frames."""

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
    """side of a hole as a fraction of the picture"""


class TrainSettings(Section):
    epochs: int = Field(3, ge=1, le=100_000)
    batch: int = Field(16, ge=1, le=100_000)
    """items per optimiser step over all processes"""
    micro_batch: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = 2
    """items per process and forward pass; gradients are accumulated up to `batch`. auto: the most that fit a GPU's memory;
    on a CPU and under deterministic=true the number in configs/<stage>.yaml"""
    autotune: bool = True
    """on a GPU spend up to a minute on how the CNN runs fastest; off under deterministic=true"""
    eval_batch: int = Field(2, ge=1, le=10_000)
    lr: float = Field(3e-4, gt=0, le=10)
    eps_form: Literal["reference", "torch"] = "reference"
    """where AdamW adds its epsilon: to the root of the second moment, or to that of the moment freed from its bias"""
    weight_decay: float = Field(5e-4, ge=0, le=10)
    warmup: float = Field(0.1, ge=0, le=1)
    """share of all samples during which the learning rate rises"""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """auto: fp16 on a GPU as in the reference, float32 on a CPU"""
    checkpoint_minutes: float = Field(10.0, ge=0, le=1_000_000)
    evaluate_every: int = Field(1, ge=0, le=1_000_000)
    """epochs between evaluations on the held-out fold; 0: only at the end"""
    log_every: int = Field(10, ge=1, le=1_000_000)
    """optimiser steps between logged lines"""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of torch and OpenCV per process; 0: what they choose"""


class Settings(Section):
    stage: Literal["bbox", "vertebrae", "slice_fracture", "study_fracture"]
    variant: str
    cache: Path
    out: Path
    mode: Literal["train", "predict"] = "train"
    fold: Annotated[int, Field(ge=0, le=10_000)] | Literal["all"] = 0
    seed: int = Field(1, ge=0, lt=2**32)
    boxes: Path | None = None
    """a study_boxes table, or `cache` for the boxes published in the cache"""
    pseudo: Path | None = None
    backbone: Path | None = None
    """a finished slice_fracture run whose backbone study_fracture freezes"""
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
        """Whether study boxes decide what is seen: crops, the stride between windows, a study's z-range."""
        return self.data.crop or self.data.stride == "adaptive" or self.stage == "study_fracture"

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def record(self) -> dict[str, Any]:
        """What a run writes of itself: `dump` with every path from the root on, by no links, so that it means the same
        from any folder."""
        return _from_anywhere(self.dump(), os.path.realpath)


def check_keys(
    given: Mapping[str, Any], model: type[BaseModel] = Settings, prefix: str = "", where: object = None
) -> None:
    for key, value in given.items():
        if key not in model.model_fields:
            names = [prefix + name for name in model.model_fields]
            raise UsageError(f"no setting {prefix + key}", where=where, do=nearest(prefix + key, names))
        inner = model.model_fields[key].annotation
        is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
        if is_section and not isinstance(value, Mapping):
            raise UsageError(f"{prefix + key} is a section", where=where, expected=f"{prefix}{key}.<setting>=value")
        if is_section:
            check_keys(value, inner, f"{prefix}{key}.", where)
        elif isinstance(value, Mapping):
            raise UsageError(f"{prefix + key} is a value, not a section", where=where)
        elif inner is str and not isinstance(value, str):
            raise UsageError(f"{prefix + key} is one word", where=where, expected=f"{prefix}{key}=<word>")


def full_name(key: str) -> str:
    """`micro_batch` is `train.micro_batch`, written shorter."""
    return "train.micro_batch" if key == "micro_batch" else key


def stage_file(stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings common to the stage, its variants) from configs/<stage>.yaml; the first variant is the default."""
    content = read_yaml(CONFIGS / f"{stage}.yaml")
    return content, content.pop("variants")


def load(words: Iterable[str], *, must_exist: bool = True, places: Mapping[str, str] | None = None) -> Settings:
    """Settings from `key=value` words. Raises UsageError with the nearest right choice. places: below all else.

    must_exist=False leaves out whether paths exist, for runs whose inputs are yet to be made."""
    given = parse_assignments(words)
    extra: list[dict[str, Any]] = []
    files = given.pop("config", None)
    micro_batch = given.pop("micro_batch", None)
    if isinstance(files, dict):
        raise UsageError("config is a value, not a section", expected="config=FILE or FILE,FILE")
    stage = given.get("stage")
    if stage is None:
        raise UsageError("no stage given", expected="stage=" + "|".join(STAGES), do="see --help")
    if stage not in STAGES:
        raise UsageError(f"no stage {stage}", do=nearest(str(stage), STAGES))
    common, variants = stage_file(stage)
    if files is not None:
        extra = [stage_layer(path, stage) for path in split_files(files)]
    check_keys(given)
    if micro_batch is not None:
        if "micro_batch" in given.get("train", {}):
            raise given_twice(f"train.micro_batch={given['train']['micro_batch']}", f"micro_batch={micro_batch}")
        given = merge(given, {"train": {"micro_batch": micro_batch}})
    variant = given.get("variant") or next((layer["variant"] for layer in reversed(extra) if "variant" in layer), None)
    variant = variant or next(iter(variants))
    if variant not in variants:
        raise UsageError(f"no variant {variant} of stage {stage}", do=nearest(variant, variants))
    for needed in ("cache", "out"):
        if not any(needed in layer for layer in (given, *extra, places or {})):
            raise UsageError(f"no {needed} given", expected="cache=CACHE out=RUNS", do="see --help")
    merged = merge(places or {}, common, variants[variant] or {}, *extra, given, {"variant": variant})
    settings = validate(_without_nulls(merged))
    check_folder(settings.out)
    check_folder(settings.run_dir)
    if must_exist:
        check_paths(settings)
    return settings


def shown(words: Iterable[str]) -> str:
    """All settings of a run as YAML; what it is made from need not be given."""
    settings = load(words, must_exist=False, places=PLACES)
    unused = {"boxes": not settings.needs_boxes, "pseudo": settings.stage != "slice_fracture"}
    unused["backbone"] = settings.stage != "study_fracture"
    values = {name: None if unused.get(name) else value for name, value in settings.dump().items()}
    values = _from_anywhere(values, os.path.abspath)
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def _from_anywhere(values: Mapping[str, Any], whole: Callable[[str], str], prefix: str = "") -> dict[str, Any]:
    """Whole paths in the place of relative ones, so that they can be given back in a file elsewhere."""
    made = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = _from_anywhere(value, whole, f"{prefix}{key}.")
        elif names_a_place(prefix + key, value) and value != PLACES.get(key):
            value = whole(value)
        made[key] = value
    return made


def names_a_place(key: str, value: Any) -> bool:
    """Whether this setting's value is a path: not `boxes=cache`, and not one that is left open."""
    return key in PATHS and isinstance(value, str) and value not in ("", "null") and (key, value) != ("boxes", "cache")


def stage_layer(path: Path, stage: str) -> dict[str, Any]:
    """A settings file: keys for every stage, and under `stages:` keys for one. Its paths are relative to its own folder."""
    content = read_yaml(path)
    per_stage = content.pop("stages", {}) or {}
    if not isinstance(per_stage, dict) or not all(isinstance(value, dict) for value in per_stage.values()):
        raise UsageError("stages does not hold settings", where=path, expected="stages: {<stage>: {section: {...}}}")
    for name in per_stage:
        if name not in STAGES:
            raise UsageError(f"no stage {name}", where=path, do=nearest(name, STAGES))
    layer = merge(content, per_stage.get(stage) or {})
    check_keys(layer, where=path)
    return _placed(layer, path)


def _placed(layer: Mapping[str, Any], file: Path, prefix: str = "") -> dict[str, Any]:
    made = {}
    for key, value in layer.items():
        if isinstance(value, Mapping):
            value = _placed(value, file, f"{prefix}{key}.")
        made[key] = beside(file, value) if names_a_place(prefix + key, value) else value
    return made


def validate(values: Mapping[str, Any]) -> Settings:
    """Typed. Raises UsageError for a value that does not fit, or that the variant needs and is not there."""
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(_keys(first["loc"]))
        same = [each for each in error.errors() if ".".join(_keys(each["loc"])) == key]
        wanted = [each["msg"].lower().removeprefix("input should be ").partition(", unable")[0] for each in same]
        raise UsageError(f"{key}={first.get('input')!r:.80} does not fit", expected=" or ".join(wanted)) from None
    check_needs(settings)
    return settings


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """pydantic's place of an error without the names of a union's branches."""
    return [str(part) for part in loc if str(part) in Settings.model_fields or str(part) in _SECTION_KEYS]


_SECTION_KEYS = {
    name for section in (ModelSettings, DataSettings, AugmentSettings, TrainSettings) for name in section.model_fields
}


def _paths(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        if Path in kinds:
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _paths(field.annotation, f"{prefix}{name}.")


PATHS = frozenset(_paths(Settings))
"""settings whose values are paths"""


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else None if value in ("null", "") else value
        for key, value in values.items()
    }
