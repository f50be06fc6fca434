"""What a run chooses before its first step. config.yaml keeps it under `chosen`, and a resumed run uses it again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache

from trainer.data.items import Item
from trainer.models import Network
from trainer.session import Session
from trainer.tuning import micro_batch
from trainer.tuning.autotune import LAYOUTS, Layout, fastest, seconds_per_pass


@dataclass(frozen=True)
class Tuning:
    micro_batch: int
    """most items per process and forward pass; `micro_batch.split_batch` gives the actual number"""
    channels_last: bool = False
    compiled: bool = False


def tune(session: Session, model: Network, items: Sequence[Item]) -> Tuning:
    """Measures on this GPU with the longest of these items. All processes call it and get the same result.

    On a CPU and with deterministic=true it measures nothing.
    """
    train, device = session.settings.train, session.accelerator.device

    def actual(most: int) -> int:
        return micro_batch.split_batch(train.batch, most, session.accelerator.num_processes)[0]

    auto = train.micro_batch == "auto"
    most = micro_batch.configured(session.settings) if train.micro_batch == "auto" else train.micro_batch
    if device.type != "cuda" or session.settings.deterministic:
        if auto:
            why = "nothing is measured on a CPU or with deterministic=true"
            session.say(f"micro_batch=auto: {actual(most)}, from the stage's settings; {why}")
        return Tuning(most)
    model.to(device)
    if auto:
        most = min(gather_object([micro_batch.find(session, model, items)]))
        session.say(f"micro_batch=auto: {actual(most)}; {most} items fit this GPU")
    layout = Layout()
    if train.autotune and session.is_main:
        layout = fastest_layout(session, model, actual(most))
        torch.compiler.reset()  # frees the compiled copies
    clear_device_cache(garbage_collection=True)  # DALI and other processes cannot use memory in torch's cache
    (layout,) = broadcast_object_list([layout])
    return Tuning(most, *layout)


def fastest_layout(session: Session, model: Network, items: int, layouts: Sequence[Layout] = LAYOUTS) -> Layout:
    """The fastest layout of the model's CNN for a training pass of `items` items."""
    settings, accelerator = session.settings, session.accelerator
    if settings.model.batch_norm == "train":
        layouts = [layout for layout in layouts if not layout.compiled]  # its last chunks have other lengths
    count, size = session.stage.images_a_pass(settings, items), settings.data.size
    generator = torch.Generator(accelerator.device).manual_seed(0)  # leaves the run's own generator alone
    images = torch.randn(count, 3, size, size, device=accelerator.device, generator=generator).half()
    model.train()

    def measure(layout: Layout) -> float:
        return seconds_per_pass(model.backbone, images, layout, accelerator.autocast)

    return fastest(layouts, measure, session.say)


def apply(tuning: Tuning, session: Session, model: Network) -> None:
    """Applies the layout to the model's CNN; not on a CPU, where it is of no use."""
    if session.accelerator.device.type == "cuda":
        if tuning.compiled and session.accelerator.num_processes > 1:
            from torch import _dynamo

            _dynamo.config.optimize_ddp = False  # it would split the CNN into one graph per gradient bucket
        model.backbone.lay_out(tuning.channels_last, tuning.compiled)
