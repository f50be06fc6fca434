"""What a run finds out before its first step: kept in config.yaml under `chosen`, and used again when it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache
from torch import nn

from trainer.data.items import Item
from trainer.session import Session
from trainer.tuning import micro_batch
from trainer.tuning.autotune import LAYOUTS, Layout, fastest, seconds_per_pass


@dataclass(frozen=True)
class Tuning:
    micro_batch: int
    """items per process and forward pass, at most: what divides a process's share of a step counts (`micro_batch.share`), which another
    number of processes changes"""
    channels_last: bool = False
    compiled: bool = False


def tune(session: Session, model: nn.Module, items: Sequence[Item]) -> Tuning:
    """Tried out on this GPU with the longest of these items. All processes call it, and get the same.

    On a CPU and under deterministic=true nothing is tried.
    """
    train, tries = session.settings.train, tries_out(session)

    def shared(most: int) -> int:
        return micro_batch.share(train.batch, most, session.accelerator.num_processes)[0]

    given = micro_batch.configured(session.settings) if train.micro_batch == "auto" else train.micro_batch
    if train.micro_batch == "auto" and not tries:
        session.say(
            f"micro_batch=auto: {shared(given)}, by the stage's own settings; nothing is tried on a CPU or under deterministic=true"
        )
    if not tries:
        return Tuning(given)
    model.to(session.accelerator.device)
    if train.micro_batch == "auto":
        given = min(gather_object([micro_batch.find(session, model, items)]))
        session.say(f"micro_batch=auto: {shared(given)}; {given} items fit this GPU")
    layout = Layout()
    if train.autotune and session.is_main:
        layout = fastest_layout(session, model, shared(given))
        torch.compiler.reset()  # lets go of the copies that were compiled
    clear_device_cache(garbage_collection=True)  # DALI and other processes cannot use what torch holds back
    (layout,) = broadcast_object_list([layout])
    return Tuning(given, *layout)


def tries_out(session: Session) -> bool:
    return session.accelerator.device.type == "cuda" and not session.settings.deterministic


def fastest_layout(session: Session, model: nn.Module, items: int, layouts: Sequence[Layout] = LAYOUTS) -> Layout:
    """The fastest layout of the model's CNN at the number of images that training gives it."""
    settings, accelerator = session.settings, session.accelerator
    if settings.model.batch_norm == "train":
        layouts = [layout for layout in layouts if not layout.compiled]  # its last chunks differ in length
    count, size = session.stage.images_a_pass(settings, items), settings.data.size
    numbers = torch.Generator(accelerator.device).manual_seed(0)  # its own, so that the run's are left alone
    images = torch.randn(count, 3, size, size, device=accelerator.device, generator=numbers).half()
    model.train()
    return fastest(
        layouts, lambda layout: seconds_per_pass(model.backbone, images, layout, accelerator.autocast), session.say
    )


def apply(tuning: Tuning, session: Session, model: nn.Module) -> None:
    """Lays the model's CNN out as chosen. Another machine's layout is of no use on a CPU."""
    if session.accelerator.device.type == "cuda":
        if tuning.compiled and session.accelerator.num_processes > 1:
            from torch import _dynamo

            _dynamo.config.optimize_ddp = False  # else it would cut the CNN into one graph for each bucket of gradients
        model.backbone.lay_out(tuning.channels_last, tuning.compiled)
