"""Features of K augmentations of every study, stored on disk for stage 4: `data.bank=K`.

Its CNN is frozen, so an image's features never change; epoch e uses augmentation e mod K. A bank saves time for several heads,
or longer training, on one backbone. Files in OUT/bank are float32, named by the digest of all they depend on. Missing ones are
made before the first step.
"""

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from cache_schema.documents import write_whole
from cache_schema.errors import CacheError
from trainer.data.augment import Augmentation, AugmentParams
from trainer.data.items import Item
from trainer.data.loader import Batch, Loader, to_device
from trainer.data.order import Evaluation, ScheduledItem, Training
from trainer.models import StudyFractureModel
from trainer.process.command import warn_once
from trainer.runs.file_names import MODEL_FILE
from trainer.runs.weights import weights_digest
from trainer.session import Session

BANK = "bank"
VERSION = 3
"""raise it when the same inputs give other features"""
DIGEST_BYTES = hashlib.sha256().digest_size


class Bank:
    """The features of one run's training items. Runs of the same `out` share files."""

    def __init__(self, session: Session, items: Sequence[Item]):
        settings = session.settings
        assert settings.backbone is not None, "a bank is of a stage with a frozen backbone"
        self.session, self.items = session, items
        self.count, self.folder = settings.data.bank, settings.out / BANK
        common = {
            "version": VERSION,
            "backbone": weights_digest(settings.backbone / MODEL_FILE),
            "pixel_hash": session.inputs.cache.pixel_hash,
            "picture": settings.data.model_dump(include={"size", "crop", "interpolation", "intensity", "thin"}),
            "augment": settings.augment.model_dump(),
            "seed": settings.seed,
            "precision": session.accelerator.mixed_precision,
        }
        self._common = json.dumps(common, sort_keys=True)
        self.ids = sorted({item.id for item in items})
        self._boxes = session.inputs.crop_boxes(self.ids) or {}

    def path(self, number: int, item: Item) -> Path:
        """The file of one item's features under one augmentation."""
        content = self.session.inputs.index.at[item.id, "content_digest"]
        own = [self._common, content, self._boxes.get(item.id), item, number]
        key = hashlib.sha256(json.dumps(own, default=int).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.npy"

    def read(self, entry: ScheduledItem) -> torch.Tensor:
        """(triplets, width) float32 of the item under its epoch's augmentation. Makes them again if they are damaged."""
        number = entry.epoch % self.count
        path = self.path(number, entry.item)
        if (features := read_features(path)) is None:
            warn_once(f"{path}: is missing or does not match its digest; it is made again")
            self._make(self.model, number, [entry.item])
            features = read_features(path)
        if features is None:
            raise CacheError("is damaged as soon as it is written", where=path, do="check the disk")
        return torch.from_numpy(features)

    def fill(self, model: StudyFractureModel) -> None:
        """Makes missing features. All processes call it and share the work."""
        self.model = model
        session, train = self.session, self.session.settings.train
        accelerator = session.accelerator
        for number in range(min(self.count, train.epochs)):
            # a network file system may show each machine other files
            listed = [not self.path(number, item).is_file() for item in self.items] if session.is_main else None
            (listed,) = broadcast_object_list([listed])
            missing = list(compress(self.items, listed))
            own = missing[accelerator.process_index :: accelerator.num_processes]
            if missing:
                session.say(f"bank: features of augmentation {number + 1} of {self.count} for {len(missing)} studies")
            if own:
                self._make(model, number, own)
        accelerator.wait_for_everyone()

    def _make(self, model: StudyFractureModel, number: int, items: Sequence[Item]) -> None:
        session, batch = self.session, self.session.settings.train.eval_batch
        schedule = Evaluation(items, batch)
        ids = sorted({item.id for item in items})
        augmentation = OneAugmentation(**vars(session.augmentation()), number=number)
        for found in session.loader(schedule, batch, augmentation, ids, limit=schedule.steps * batch):
            with torch.no_grad(), session.accelerator.autocast():
                features = model.encode(found.images).cpu().split(found.triplets)
            for entry, each in zip(found.entries, features, strict=True):
                if entry.counts:
                    write_features(self.path(number, entry.item), each.numpy())


class BankLoader(Loader):
    """Batches of features instead of images, in a training schedule's order."""

    def __init__(self, session: Session, bank: Bank, schedule: Training, batch: int):
        loader = session.loader(schedule, batch, session.augmentation(), bank.ids, targets=True)
        super().__init__(loader.source, batch, loader.settings, loader.device, loader.targets)
        self.bank = bank

    def __iter__(self) -> Generator[Batch]:
        k = 0
        while True:
            entries = [self.source.schedule[k + i] for i in range(self.batch)]
            features = [self.bank.read(entry) for entry in entries]
            images = to_device(torch.cat(features), self.device)
            yield self._with_targets(images, [len(each) for each in features], entries)
            k += self.batch


@dataclass(frozen=True)
class OneAugmentation(Augmentation):
    """The same augmentation in every epoch."""

    number: int = 0

    def __call__(self, epoch: int, item: Item) -> AugmentParams:
        return super().__call__(self.number, item)


def write_features(path: Path, features: np.ndarray) -> None:
    """Writes features and their digest, atomically: runs that share a bank may write the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = BytesIO()
    np.save(data, features, allow_pickle=False)
    write_whole(path, data.getvalue() + hashlib.sha256(data.getvalue()).digest())


def read_features(path: Path) -> np.ndarray | None:
    """None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    data, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    try:
        return np.load(BytesIO(data), allow_pickle=False) if hashlib.sha256(data).digest() == digest else None
    except ValueError:  # a pickle, not an array
        return None
