"""Crops of whole studies in GPU memory (`data.resident=gpu`): decoded and copied once, then sliced and stretched on the GPU."""

from typing import Any

import numpy as np
import torch

from cache_schema import Cache
from cache_schema.errors import UsageError
from cache_schema.study import Box
from trainer.data.augment import AugmentParams
from trainer.data.order import ScheduledItem
from trainer.data.source import Source, assemble

MEMORY_FRACTION = 0.7
"""of the free memory when loading starts; the rest is for the network"""


class Crops:
    """(slices, h, w) uint8 of each loaded study, on one device."""

    def __init__(self, cache: Cache, device: torch.device):
        self.cache, self.device = cache, device
        self._crops: dict[tuple[str, Box], torch.Tensor] = {}

    def load(self, squares: dict[str, Box]) -> None:
        """Loads the crops that are missing. Raises UsageError, before it reads any, if they do not fit."""
        missing = [key for key in squares.items() if key not in self._crops]
        slices = self.cache.index.set_index("id")["slices"]
        need = sum(int(slices[id]) * (y1 - y0) * (x1 - x0) for id, (x0, y0, x1, y1) in missing)
        room = self._room()
        if need > room:
            line = f"data.resident=gpu needs {need / 2**30:.1f} GiB for {len(missing)} studies, of {room / 2**30:.1f} GiB available"
            raise UsageError(line, where=str(self.device), do="set data.resident=ram or disk")
        for id, square in missing:
            study = self.cache.study(id)
            self._crops[id, square] = torch.from_numpy(study.read(0, study.record.slices, square)).to(self.device)

    def _room(self) -> float:
        return torch.cuda.mem_get_info(self.device)[0] * MEMORY_FRACTION if self.device.type == "cuda" else float("inf")

    def frames(self, id: str, square: Box, index: np.ndarray) -> torch.Tensor:
        """(n, h, w) uint8: equally spaced slices of a study."""
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        return self._crops[id, square][int(index[0]) : int(index[-1]) + 1 : step]


class ResidentSource:
    """A Source whose pixels are device tensors, for DALI's external sources in the training process."""

    def __init__(self, source: Source, crops: Crops):
        """crops: shared by training and evaluation. Loads those that are missing."""
        self.source, self.crops = source, crops
        self._squares = source.squares
        self.crops.load(self._squares)
        self.stream = _stream_after_all(crops.device)
        """stream that cuts frames and copies them to DALI, beside the network's own; None on a CPU"""

    def pixels(self, info: Any) -> torch.Tensor | np.ndarray:
        """(frames, h, w, 1) uint8 on the device, or an array on a CPU; equal to `Source.pixels`."""
        with torch.cuda.stream(self.stream):
            found = self._frames(*self._at(info))
        return found if found.is_cuda else found.numpy()

    def _frames(self, entry: ScheduledItem, params: AugmentParams) -> torch.Tensor:
        item, square = entry.item, self._squares[entry.item.id]
        index = item.z_index(params.step, params.phase)
        found = self.crops.frames(item.id, square, index[index >= 0])
        if self.source.intensity == "per_slice" or params.gain != 1:
            found = stretch(found, params.gain, self.source.intensity == "per_slice")
        if len(found) < item.frames:
            found = torch.cat([found, found.new_zeros(item.frames - len(found), *found.shape[1:])])
        return (found.flip(0) if params.reverse else found)[..., None].contiguous()

    def numbers(self, info: Any) -> tuple[np.ndarray, ...]:
        """A Sample's fields without its pixels."""
        entry, params = self._at(info)
        x0, y0, x1, y1 = self._squares[entry.item.id]
        return tuple(assemble(np.empty((0, y1 - y0, x1 - x0), np.uint8), params, entry.item.key)[1:])

    def _at(self, info: Any) -> tuple[ScheduledItem, AugmentParams]:
        k = info.idx_in_epoch
        if self.source.limit is not None and k >= self.source.limit:
            raise StopIteration
        entry = self.source.schedule[k]
        return entry, self.source.params(entry)


def _stream_after_all(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream, which first waits for the work queued on the current one."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def stretch(pixels: torch.Tensor, gain: float = 1.0, per_slice: bool = True) -> torch.Tensor:
    """As `trainer.data.source.stretch`, by each slice's own minimum and maximum, or by the gain only. (n, h, w) uint8."""
    if per_slice:
        low, high = pixels.amin((1, 2), keepdim=True).int(), pixels.amax((1, 2), keepdim=True).int()
        pixels = (pixels.int() - low) * 255 // (high - low).clamp(min=1)
    return (pixels.float() * gain).clamp_(max=255).to(torch.uint8)
