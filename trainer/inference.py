"""Prediction: every item of a split once, for any number of processes.

The CNN takes most of the time. Slice windows overlap; those whose starts are equal modulo 3 share triplets. Each distinct
triplet (study, three slices) goes through the CNN once, and windows are assembled from features. A triplet's image does not
depend on its window: slices are stretched one by one, and nothing is augmented.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast, gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from cache_schema.errors import UsageError
from trainer.data.image import MEAN, STD
from trainer.data.items import Item
from trainer.data.loader import Batch
from trainer.data.order import Evaluation, ScheduledItem
from trainer.models import Network
from trainer.models.sequence import TRIPLET
from trainer.session import Session


class NotFinite(UsageError):
    """A model has predicted infinite numbers, or none."""


def predict(
    session: Session, model: nn.Module, *, scored_only: bool = False, images: int | None = None
) -> pd.DataFrame | None:
    """The stage's prediction table of the split on the main process; None on others.

    scored_only: only the studies that the stage is scored on. images: in one pass of the CNN over windows; by default as many
    as `train.eval_batch` windows have. Raises UsageError if there is no study, and NotFinite, in all processes, if a number is
    not finite.
    """
    accelerator, stage, inputs = session.accelerator, session.stage, session.inputs
    ids = inputs.scored_ids() if scored_only else inputs.eval_ids()
    items = stage.eval_items(ids)
    if not items:
        raise UsageError("no study to predict on", where=session.settings.run_dir, do="set split=all or another fold=")
    network: Network = accelerator.unwrap_model(model).eval()
    if accelerator.device.type != "cpu":
        clear_device_cache(garbage_collection=True)  # DALI cannot use memory in torch's cache
    if accelerator.num_processes > 1:
        # processes have different running statistics of batch norm; the main process's are saved
        for buffer in network.buffers():
            broadcast(buffer)
    of_windows = stage.items == "windows"
    batches = encoded_windows(session, network, items, images) if of_windows else image_batches(session, items)
    rows = []
    with torch.no_grad():
        for batch in batches:
            with accelerator.autocast():
                outputs = stage.forward(network, batch)
            rows.append(stage.rows(outputs, batch))
    table = stage.table(pd.concat(gather_object(rows), ignore_index=True))
    finite = np.isfinite(table.select_dtypes("number").to_numpy(np.float64)).all(axis=1)
    if not scored_only and not finite.all():
        line = f"predicts numbers that are not finite, first for study {table['id'][~finite].min()}"
        predicting = session.settings.mode == "predict"
        do = "set train.precision=no" if predicting else "train again with another train.precision"
        raise NotFinite(line, where=session.settings.weights or session.settings.run_dir, do=do)
    return table if session.is_main else None


def image_batches(session: Session, items: Sequence[Item]) -> Iterator[Batch]:
    """Batches of this process's items."""
    accelerator, batch = session.accelerator, session.settings.train.eval_batch
    schedule = Evaluation(items, batch, accelerator.process_index, accelerator.num_processes)
    yield from session.loader(schedule, batch, session.no_augmentation(), _ids(items), limit=schedule.steps * batch)


def encoded_windows(
    session: Session, model: Network, items: Sequence[Item], images: int | None = None
) -> Iterator[Batch]:
    """Batches of windows with features instead of images. Each process takes whole studies.

    images: in one pass of the CNN; by default as many as `train.eval_batch` windows have. Features are kept by study.
    """
    accelerator, train = session.accelerator, session.settings.train
    studies = [list(windows) for _, windows in groupby(items, key=lambda item: item.id)]
    shown, needed = sum(_triplets(item) for item in items), sum(len(distinct(windows)) for windows in studies)
    session.say(
        f"{len(items)} windows, {needed} distinct triplets instead of {shown}: {shown / needed:.2f} times fewer"
    )
    own = deque(studies[accelerator.process_index :: accelerator.num_processes])
    triplets = [triplet for windows in own for triplet in distinct(windows)]
    triplets = [triplet._replace(key=key) for key, triplet in enumerate(triplets)]
    if not triplets:
        return
    batch = images or train.eval_batch * session.settings.data.frames // TRIPLET
    schedule = Evaluation(triplets, batch)
    limit, resize, ids = schedule.steps * batch, session.no_augmentation(), _ids(triplets)
    features: dict[tuple[str, int], Tensor] = {}
    blank = cache(partial(_blank, session, model, batch))
    for found in session.loader(schedule, batch, resize, ids, limit=limit, keep_chunks=True):
        starts = [(entry.item.id, entry.item.start) for entry in found.entries]
        features.update(zip(starts, _encode(session, model, found.images), strict=True))
        while own and (own[0][0].id, distinct(own[0])[-1].start) in features:
            windows = own.popleft()
            pairs = [(window, start) for window in windows for start in _starts(window)]
            features.update({(window.id, start): blank() for window, start in pairs if start >= window.slices})
            for first in range(0, len(windows), train.eval_batch):
                yield _assemble(windows[first : first + train.eval_batch], features)
            features = {(id, start): each for (id, start), each in features.items() if id != windows[0].id}


def distinct(windows: Sequence[Item]) -> list[Item]:
    """The distinct triplets of one study's windows, by first slice, without those beyond the study's end."""
    own = {start for window in windows for start in _starts(window) if start < window.slices}
    return [Item(key, windows[0].id, start, TRIPLET, windows[0].slices) for key, start in enumerate(sorted(own))]


@torch.no_grad()
def _encode(session: Session, model: Network, images: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, width) float32, under the session's precision."""
    with session.accelerator.autocast():
        return model.backbone(images)


def _blank(session: Session, model: Network, batch: int) -> Tensor:
    """(width,) float32: features of three slices beyond a study's end."""
    image = torch.from_numpy((-MEAN / STD).astype(np.float16))[:, None, None]
    size, device = session.settings.data.size, session.accelerator.device
    # on a GPU a full batch: a compiled CNN, and cuDNN's choice of algorithms, should see one shape only
    count = batch if device.type == "cuda" else 1
    return _encode(session, model, image.expand(count, TRIPLET, size, size).to(device))[0]


def _assemble(windows: Sequence[Item], features: dict[tuple[str, int], Tensor]) -> Batch:
    """A batch of windows from the features of their triplets."""
    rows = [features[window.id, start] for window in windows for start in _starts(window)]
    entries = [ScheduledItem(0, window) for window in windows]
    lengths = [_triplets(window) for window in windows]
    return Batch(torch.stack(rows), lengths, entries, [window.z_index() for window in windows], {})


def _triplets(window: Item) -> int:
    return window.frames // TRIPLET


def _starts(window: Item) -> range:
    return range(window.start, window.start + window.frames, TRIPLET)


def _ids(items: Sequence[Item]) -> list[str]:
    return sorted({item.id for item in items})
