"""Checks before anything is opened: required settings, settings that exclude each other, and input paths."""

from typing import TYPE_CHECKING

from cache_schema.errors import UsageError, did_you_mean_path
from cache_schema.store_path import StorePath
from trainer.settings.stage_registry import stage_class, stage_names

if TYPE_CHECKING:
    from trainer.settings.settings import Settings


def check_needs(settings: "Settings") -> None:
    """Raises UsageError for a required setting that is missing, and for settings that exclude each other."""
    name, stage = f"{settings.stage} {settings.variant}", settings.facts
    data, training = settings.data, settings.mode == "train"
    missing = {
        "boxes": ("works on study boxes", "add boxes=TABLE or boxes=cache"),
        "pseudo": ("trains on pseudo labels", "add pseudo=TABLE"),
        "backbone": (f"freezes a {stage.backbone} backbone", "add backbone=RUN"),
    }
    for source, path in settings.sources(training=training).items():
        if path is None:
            raise UsageError(f"{name} {missing[source][0]} and was given none", do=missing[source][1])
    if data.eval_stride > data.frames:
        line = f"data.eval_stride={data.eval_stride} leaves slices between windows of {data.frames}"
        raise UsageError(line, expected="at most data.frames")
    if data.resident == "gpu" and not data.crop:
        raise UsageError(f"data.resident=gpu keeps crops, and {name} has none", do="give data.resident=ram or disk")
    if data.resident == "gpu" and data.on_error == "skip":
        raise UsageError("data.resident=gpu reads all items first and cannot skip any", do="leave data.on_error out")
    if data.bank and stage.backbone is None:
        frozen = [name for name in stage_names() if stage_class(name).backbone is not None]
        raise UsageError("data.bank keeps features of a frozen CNN", expected=f"stage={'|'.join(frozen)}")
    if data.bank and settings.model.batch_norm == "train":
        raise UsageError("data.bank needs a CNN that never changes", expected="model.batch_norm=eval")
    for given, wrong in (("split=all", settings.split == "all"), ("weights=", settings.weights is not None)):
        if training and wrong:
            raise UsageError(f"{given} belongs to mode=predict", do="leave it out, or give mode=predict")


def check_paths(settings: "Settings") -> None:
    """Raises UsageError for an input that does not exist."""
    given = {key: getattr(settings, key) for key in ("cache", "boxes", "pseudo", "backbone", "weights")}
    for key, path in (given | {"model.weights_file": settings.model.weights_file}).items():
        if path is None or isinstance(path, StorePath) or path.exists() or (key == "boxes" and str(path) == "cache"):
            continue
        raise UsageError("no such path", where=f"{key}={path}", do=did_you_mean_path(path.absolute()))
