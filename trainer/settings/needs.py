"""What a run needs that its settings leave out, and paths that are not there: said before anything is opened."""

from typing import TYPE_CHECKING

from cache_schema.errors import UsageError, did_you_mean_path
from trainer.settings.registry import stage_class, stage_names

if TYPE_CHECKING:
    from trainer.settings.settings import Settings


def check_needs(settings: "Settings") -> None:
    """Raises UsageError for what a variant needs and is not given, and for settings that do not go together."""
    name = f"{settings.stage} {settings.variant}"
    if settings.needs_boxes and settings.boxes is None:
        raise UsageError(f"{name} works on study boxes and was given none", do="add boxes=TABLE or boxes=cache")
    training, stage = settings.mode == "train", settings.facts
    if training and stage.learns_from == "pseudo_labels" and settings.pseudo is None:
        raise UsageError(f"{name} trains on pseudo labels and was given none", do="add pseudo=TABLE")
    if training and stage.backbone is not None and settings.backbone is None:
        raise UsageError(f"{name} freezes a {stage.backbone} backbone and was given none", do="add backbone=RUN")
    if settings.data.eval_stride > settings.data.frames:
        line = f"data.eval_stride={settings.data.eval_stride} leaves slices between windows of {settings.data.frames}"
        raise UsageError(line, expected="at most data.frames")
    if settings.data.resident == "gpu" and not settings.data.crop:
        raise UsageError(f"data.resident=gpu keeps crops, and {name} has none", do="give data.resident=ram or disk")
    if settings.data.resident == "gpu" and settings.data.on_error == "skip":
        raise UsageError(
            "data.resident=gpu reads everything first, so nothing can be skipped", do="leave data.on_error out"
        )
    if settings.data.bank and stage.backbone is None:
        frozen = [name for name in stage_names() if stage_class(name).backbone is not None]
        raise UsageError("data.bank keeps features of a frozen CNN", expected=f"stage={'|'.join(frozen)}")
    if settings.data.bank and settings.model.batch_norm == "train":
        raise UsageError("data.bank needs a CNN that never changes", expected="model.batch_norm=eval")
    if settings.mode == "train" and settings.split == "all":
        raise UsageError("split=all belongs to mode=predict", do="leave it out, or give mode=predict")
    if settings.mode == "train" and settings.weights is not None:
        raise UsageError("weights= belongs to mode=predict", do="leave it out, or give mode=predict")


def check_paths(settings: "Settings") -> None:
    """Raises UsageError for an input that is not there."""
    given = {key: getattr(settings, key) for key in ("cache", "boxes", "pseudo", "backbone", "weights")}
    for key, path in (given | {"model.weights_file": settings.model.weights_file}).items():
        if path is None or path.exists() or (key == "boxes" and str(path) == "cache"):
            continue
        raise UsageError("no such path", where=f"{key}={path}", do=did_you_mean_path(path.absolute()))
