"""Prediction: every item of a split once, whatever the number of processes.

The CNN is what costs. Slice windows overlap, and where the starts of two are equal modulo 3 they share triplets: each
distinct triplet (study, three slices) goes through the CNN once, and windows are put together from features. A triplet's
image does not depend on its window, since slices are stretched one by one and nothing is augmented.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
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
from trainer.models.sequence import TRIPLET
from trainer.session import Session


def predict(session: Session, model: nn.Module, *, scored_only: bool = False) -> pd.DataFrame | None:
    """The stage's prediction table over the split, on the main process; None on the others.

    scored_only: only studies that the stage is scored on. Raises UsageError where there is no study, or, in all
    processes, where a number is not finite.
    """
    accelerator, stage, inputs = session.accelerator, session.stage, session.inputs
    ids = inputs.scored_ids() if scored_only else inputs.eval_ids()
    items = stage.eval_items(ids)
    if not items:
        raise UsageError("no study to predict on", where=session.settings.run_dir, do="give split=all or another fold=")
    model = accelerator.unwrap_model(model).eval()
    clear_device_cache(garbage_collection=True)  # DALI cannot use what torch holds back of a GPU's memory
    if accelerator.num_processes > 1:
        # batch norm's running statistics are each process's own; the main process's are the ones that are saved
        for buffer in model.buffers():
            broadcast(buffer)
    batches = encoded_windows(session, model, items) if stage.items == "windows" else image_batches(session, items)
    rows = []
    with torch.no_grad():
        for batch in batches:
            with accelerator.autocast():
                outputs = stage.forward(model, batch)
            rows.append(stage.rows(outputs, batch))
    table = stage.table(pd.concat(gather_object(rows), ignore_index=True))
    finite = np.isfinite(table.select_dtypes("number").to_numpy(np.float64)).all(axis=1)
    if not scored_only and not finite.all():
        line = f"predicts numbers that are not finite, first for study {table['id'][~finite].min()}"
        do = (
            "give train.precision=no"
            if session.settings.mode == "predict"
            else "train anew with another train.precision"
        )
        raise UsageError(line, where=session.settings.weights or session.settings.run_dir, do=do)
    return table if session.is_main else None


def image_batches(session: Session, items: Sequence[Item]) -> Iterator[Batch]:
    """This process's share of the items, as they are."""
    accelerator, batch = session.accelerator, session.settings.train.eval_batch
    schedule = Evaluation(items, batch, accelerator.process_index, accelerator.num_processes)
    yield from session.loader(schedule, batch, session.no_augmentation(), _ids(items), limit=schedule.steps * batch)


def encoded_windows(session: Session, model: nn.Module, items: Sequence[Item]) -> Iterator[Batch]:
    """Batches of windows whose images are features already; each process takes whole studies.

    One pass of the CNN takes as many images as `train.eval_batch` windows have, and features are kept by study.
    """
    accelerator, train = session.accelerator, session.settings.train
    studies = [list(windows) for _, windows in groupby(items, key=lambda item: item.id)]
    shown, needed = sum(_triplets(item) for item in items), sum(len(distinct(windows)) for windows in studies)
    session.say(
        f"{len(items)} windows, {needed} distinct triplets in place of {shown}: {shown / needed:.2f} times fewer"
    )
    own = deque(studies[accelerator.process_index :: accelerator.num_processes])
    triplets = [triplet for windows in own for triplet in distinct(windows)]
    triplets = [triplet._replace(key=key) for key, triplet in enumerate(triplets)]
    if not triplets:
        return
    batch = train.eval_batch * session.settings.data.frames // TRIPLET
    schedule = Evaluation(triplets, batch)
    limit = schedule.steps * batch
    encoder = _Encoder(session, model, batch)
    features: dict[tuple[str, int], Tensor] = {}
    for found in session.loader(
        schedule, batch, session.no_augmentation(), _ids(triplets), limit=limit, keep_chunks=True
    ):
        starts = [(entry.item.id, entry.item.start) for entry in found.entries]
        features.update(zip(starts, encoder(found.images), strict=True))
        while own and (own[0][0].id, distinct(own[0])[-1].start) in features:
            windows = own.popleft()
            for first in range(0, len(windows), train.eval_batch):
                yield _put_together(windows[first : first + train.eval_batch], features, encoder)
            features = {(id, start): each for (id, start), each in features.items() if id != windows[0].id}


def distinct(windows: Sequence[Item]) -> list[Item]:
    """The triplets that one study's windows are made of, each once, by first slice. Those beyond its end are left out."""
    own = {start for window in windows for start in _starts(window) if start < window.slices}
    return [Item(key, windows[0].id, start, TRIPLET, windows[0].slices) for key, start in enumerate(sorted(own))]


class _Encoder:
    """Images -> features under the session's precision."""

    def __init__(self, session: Session, model: nn.Module, batch: int):
        """batch: images in one pass."""
        self.session, self.model, self.batch = session, model, batch

    @cached_property
    def blank(self) -> Tensor:
        """(width,) float32: of three slices beyond a study's end, as a window shows them."""
        image = torch.from_numpy((-MEAN / STD).astype(np.float16))[:, None, None]
        size, device = self.session.settings.data.size, self.session.accelerator.device
        # on a GPU as many as in any other pass: a CNN that is compiled, or has its algorithms tried out, sees one shape only
        count = self.batch if device.type == "cuda" else 1
        return self(image.expand(count, TRIPLET, size, size).to(device))[0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, width) float32."""
        with self.session.accelerator.autocast():
            return self.model.backbone(images)


def _put_together(windows: Sequence[Item], features: dict[tuple[str, int], Tensor], encoder: "_Encoder") -> Batch:
    found = [features.get((window.id, start)) for window in windows for start in _starts(window)]
    rows = [encoder.blank if each is None else each for each in found]
    entries = [ScheduledItem(0, window) for window in windows]
    lengths = [_triplets(window) for window in windows]
    return Batch(torch.stack(rows), lengths, entries, [window.z_index() for window in windows], {})


def _triplets(window: Item) -> int:
    return window.frames // TRIPLET


def _starts(window: Item) -> range:
    return range(window.start, window.start + window.frames, TRIPLET)


def _ids(items: Sequence[Item]) -> list[str]:
    return sorted({item.id for item in items})
