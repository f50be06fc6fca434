"""What a stage's model is shown: items in the order of training or prediction, out of the real loader, back in grey levels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cache_schema.errors import UsageError
from trainer.data.augment import Augmentation, AugmentParams
from trainer.data.image import MEAN, STD
from trainer.data.items import Item
from trainer.data.loader import Batch
from trainer.data.order import Evaluation, Training, shuffled
from trainer.runs.inputs import Inputs
from trainer.session import Session
from trainer.settings.settings import Settings
from trainer.stages.base import Stage
from trainer.tuning.feature_bank import OneAugmentation


@dataclass(frozen=True)
class Shown:
    """One item as its model sees it."""

    item: Item
    params: AugmentParams
    z_index: np.ndarray
    """(frames,) in the order shown, -1 where padded"""
    frames: np.ndarray
    """(frames, size, size) uint8 grey levels"""
    targets: dict[str, np.ndarray]
    """the stage's targets of this item; empty where the study has none"""


def shown(settings: Settings, *, epoch: int, count: int, still: bool) -> Iterator[Shown]:
    """`count` items: the first of a training epoch, or with mode=predict a sample of those predicted on, another for each epoch.

    still: without augmentation. Raises UsageError where there is no item, and whatever training raises for its inputs.
    """
    # neither changes a pixel, and both would take their time for a few items
    near = settings.data.model_copy(update={"resident": "disk", "workers": 0})
    settings = settings.model_copy(update={"data": near})
    session = Session(settings, Inputs(settings), "")
    stage, inputs, training = session.stage, session.inputs, settings.mode == "train"
    if training:
        ids = inputs.train_ids()
        items = _some(stage.train_items(ids))
        count, batch = min(count, len(items)), min(settings.train.batch, len(items))
        first = epoch * (len(items) // batch)
        schedule: Training | Evaluation = Training(items, settings.seed, batch, step=first, by_block=session.by_block)
    else:
        ids = inputs.eval_ids()
        items = _some(stage.eval_items(ids))
        count = min(count, len(items))
        chosen = sorted(shuffled(len(items), settings.seed, epoch)[:count])
        schedule = Evaluation([items[k] for k in chosen], 1)
    augmentation = session.no_augmentation() if still else session.augmentation()
    if settings.data.bank and not still:
        augmentation = OneAugmentation(**vars(augmentation), number=epoch % settings.data.bank)
    for found in session.loader(
        schedule, 1, augmentation, ids, limit=count, targets=training, keep_chunks=session.by_block
    ):
        yield _shown(found, augmentation, stage, training)


def grey_levels(images: torch.Tensor) -> np.ndarray:
    """(triplets, 3, size, size) normalised -> (3 triplets, size, size) uint8."""
    levels = images.float().cpu().numpy() * STD[:, None, None] + MEAN[:, None, None]
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).reshape(-1, *images.shape[2:])


def _shown(batch: Batch, augmentation: Augmentation, stage: Stage, training: bool) -> Shown:
    (entry,), (z_index,) = batch.entries, batch.z_index
    params = augmentation(entry.epoch, entry.item)
    if training:
        targets = {name: value[0].cpu().numpy() for name, value in batch.targets.items()}
    else:
        targets = stage.targets(entry, z_index, params) if _has_targets(stage, entry.item.id) else {}
    return Shown(entry.item, params, z_index[::-1] if params.reverse else z_index, grey_levels(batch.images), targets)


def _has_targets(stage: Stage, id: str) -> bool:
    """Training items always have them; a prediction may be on studies without."""
    if stage.inputs.segmented:
        return stage.inputs.study(id).slice_box is not None
    if stage.learns_from == "pseudo_labels":
        return stage.settings.pseudo is not None and id in stage.inputs.pseudo
    return True


def _some(items: list[Item]) -> list[Item]:
    if not items:
        raise UsageError("no item to look at", do="give another fold=, or mode=predict split=all")
    return items
