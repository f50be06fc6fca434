"""How many items one process takes through the network at once, the effective batch kept.

`train.micro_batch=auto` tries what the GPU's memory holds. Where nothing is tried - on a CPU, and under
deterministic=true, which must not depend on a card - it stands for the number in configs/<stage>.yaml.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from cache_schema.errors import CspineError, UsageError
from trainer.data.image_torch import graph_bytes
from trainer.data.items import Item
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.data.source import squares
from trainer.session import Session
from trainer.settings.keyvalue import merge
from trainer.settings.registry import stage_file
from trainer.settings.settings import Settings

RESERVED_COPIES = 3
"""of the trained weights: two moments of AdamW, and the gradients once more where processes exchange them"""
OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "unable to find an engine")
"""what libraries say that lack memory for their own work, beside what Accelerate knows"""


def share(batch: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """(items per process and forward pass, passes per optimiser step) with the effective batch kept."""
    if batch % processes:
        raise UsageError(
            f"train.batch={batch} cannot be shared by {processes} processes", expected="a multiple of their number"
        )
    each = batch // processes
    micro = next(size for size in range(min(micro_batch, each), 0, -1) if each % size == 0)
    return micro, each // micro


def configured(settings: Settings) -> int:
    """The micro-batch of the stage's own settings file."""
    common, variants = stage_file(settings.stage)
    return int(merge(common, variants[settings.variant] or {})["train"]["micro_batch"])


def largest_that_fits(most: int, attempt: Callable[[int], object]) -> int:
    """`most`, halved until `attempt` no longer runs out of memory. Raises CspineError where not even 1 fits."""
    size = most
    while size:
        try:
            attempt(size)
            return size
        except Exception as error:
            if not _lacks_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
        size //= 2
    raise CspineError("not even one item fits the GPU's memory", do="lower data.size or data.frames")


@contextmanager
def memory_in_one_line(config: Path, micro_batch: int) -> Iterator[None]:
    """Raises CspineError where memory does not hold what was chosen, here or on another card."""
    try:
        yield
    except Exception as error:
        if not _lacks_memory(error):
            raise
        line = f"memory does not hold {micro_batch} items at once"
        do = "take `chosen` out of this file and give micro_batch=auto, which then tries anew, or a smaller micro_batch"
        raise CspineError(line, where=config, do=do) from error


def _lacks_memory(error: Exception) -> bool:
    return should_reduce_batch_size(error) or any(text in str(error) for text in OUT_OF_MEMORY)


def find(session: Session, model: nn.Module, items: Sequence[Item]) -> int:
    """The most items, up to this process's share of an optimiser step, of the longest kind that fit this device.

    One pass forward and backward each, beside what training will keep there. Leaves weights, batch norm's statistics and
    random numbers as they were.
    """
    settings, device = session.settings, session.accelerator.device
    longest = max(items, key=lambda item: item.frames)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    crop = _largest_crop(session, items)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def attempt(size: int) -> None:
        try:
            batch = stand_in(longest, size, settings.data.size, device)
            reserved = [
                torch.empty(RESERVED_COPIES * trained, device=device),
                torch.empty(
                    graph_bytes(size, longest.frames, settings.data.size, crop), dtype=torch.uint8, device=device
                ),
            ]
            with session.accelerator.autocast():
                outputs = session.stage.forward(model, batch)
            loss(outputs).backward()
            del reserved
        finally:
            model.zero_grad(set_to_none=True)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        size = largest_that_fits(settings.train.batch // session.accelerator.num_processes, attempt)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return size


def _largest_crop(session: Session, items: Sequence[Item]) -> int:
    """Pixels of the largest slice that is read of any item."""
    ids = sorted({item.id for item in items})
    found = squares(session.inputs.cache, ids, session.inputs.crop_boxes(ids))
    return max((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found.values())


def stand_in(item: Item, count: int, size: int, device: torch.device) -> Batch:
    """A batch of `count` times the same item, all its images black."""
    triplets = item.frames // 3
    images = torch.zeros(count * triplets, 3, size, size, dtype=torch.float16, device=device)
    return Batch(images, [triplets] * count, [ScheduledItem(0, item)] * count, [item.z_index()] * count, {})


def loss(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """Any scalar that reaches every output."""
    tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()
