"""The number of items in one forward pass of a process. It does not change the effective batch.

`train.micro_batch=auto` finds what fits the GPU's memory. On a CPU, and with deterministic=true, which must not depend on the
GPU, it stands for the number in configs/<stage>.yaml.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from cache_schema.errors import CspineError, UsageError
from trainer.data.image_torch import graph_bytes
from trainer.data.items import Item
from trainer.data.loader import Batch
from trainer.data.order import ScheduledItem
from trainer.data.source import squares
from trainer.models import Network
from trainer.session import Session
from trainer.settings.keyvalue import merge
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_file

RESERVED_COPIES = 3
"""of the trained weights: two moments of AdamW, and DDP's gradient buckets"""
OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
    "cudaErrorMemoryAllocation",
    "CUDA allocation failed",
)
"""errors of libraries that lack memory, beside those that Accelerate knows"""


def split_batch(batch: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """(items per process and forward pass, passes per optimiser step) of an effective batch."""
    if batch % processes:
        line = f"train.batch={batch} cannot be divided among {processes} processes"
        raise UsageError(line, expected="a multiple of their number")
    each = batch // processes
    micro = next(size for size in range(min(micro_batch, each), 0, -1) if each % size == 0)
    return micro, each // micro


def configured(settings: Settings) -> int:
    """The micro-batch of the stage's settings file."""
    common, variants = stage_file(settings.stage)
    return int(merge(common, variants[settings.variant] or {})["train"]["micro_batch"])


def largest_that_fits(most: int, attempt: Callable[[int], object]) -> int:
    """`most`, halved until `attempt` no longer runs out of memory. Raises CspineError if not even 1 fits."""
    size = most
    while size:
        try:
            attempt(size)
            return size
        except Exception as error:
            if not lacks_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
        size //= 2
    raise CspineError("not even one item fits the GPU's memory", do="set data.size or data.frames lower")


@contextmanager
def explain_out_of_memory(config: Path, micro_batch: int) -> Iterator[None]:
    """Raises CspineError instead of an out-of-memory error."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        line = f"out of memory with {micro_batch} items at once"
        do = "remove `chosen` from this file and set micro_batch=auto, or a smaller micro_batch"
        raise CspineError(line, where=config, do=do) from error


def lacks_memory(error: Exception) -> bool:
    """Whether the error says that the device's memory is full."""
    return should_reduce_batch_size(error) or any(text in str(error) for text in OUT_OF_MEMORY)


def find(session: Session, model: Network, items: Sequence[Item]) -> int:
    """The largest micro-batch of the longest items that fits this device, at most the process's part of an optimiser step.

    Tries a forward and backward pass beside the memory that training needs. Does not change weights, batch norm's
    statistics or random states.
    """
    settings, device = session.settings, session.accelerator.device
    longest = max(items, key=lambda item: item.frames)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    crop = _largest_crop(session, items)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def attempt(size: int) -> None:
        try:
            batch = blank_batch(longest, size, settings.data.size, device)
            graph = graph_bytes(size, longest.frames, settings.data.size, crop)
            reserved = [
                torch.empty(RESERVED_COPIES * trained, device=device),
                torch.empty(graph, dtype=torch.uint8, device=device),
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
    """Pixels of the largest slice of any item."""
    ids = sorted({item.id for item in items})
    found = squares(session.inputs.cache, ids, session.inputs.crop_boxes(ids))
    return max((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found.values())


def blank_batch(item: Item, count: int, size: int, device: torch.device) -> Batch:
    """A batch of `count` times the same item, with black images."""
    triplets = item.frames // 3
    images = torch.zeros(count * triplets, 3, size, size, dtype=torch.float16, device=device)
    return Batch(images, [triplets] * count, [ScheduledItem(0, item)] * count, [item.z_index()] * count, {})


def loss(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """A scalar that depends on every output."""
    tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()
