"""Training under Accelerate, and what follows it: what happens to a batch, for every stage alike."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import nn

from cache_schema.errors import UsageError
from trainer.data.items import Item
from trainer.data.loader import Batch, Loader
from trainer.data.order import ScheduledItem, Training
from trainer.inference import predict
from trainer.optimiser import learning_rate, optimiser_of, set_step
from trainer.output import RunOutput
from trainer.runs import checkpoint
from trainer.runs.files import CONFIG_FILE, MODEL_FILE
from trainer.runs.identity import (
    check_weights,
    model_key,
    recorded_config,
)
from trainer.runs.run_folder import write_config_again
from trainer.stages.losses import counts, total
from trainer.tuning.feature_bank import Bank, BankLoader
from trainer.tuning.micro_batch import memory_in_one_line, share
from trainer.tuning.tuning import Tuning, apply, tune

MOST_OVERFLOWS = 40
"""fp16 steps in a row whose gradient overflows: each halves the loss scale, sixteen take its first value to 1"""


class Run(RunOutput):
    """One training or prediction in this process."""

    overflows = 0
    """steps just before this one that were skipped (fp16)"""

    def train(self) -> None:
        """From scratch or from the checkpoint of this very run, to model.safetensors and what the fold holds out."""
        settings, accelerator, train = self.settings, self.accelerator, self.settings.train
        if settings.backbone is not None:
            check_weights(settings, self.inputs.cache.pixel_hash, settings.backbone, stage=settings.facts.backbone)
        ids = self.inputs.train_ids()
        self._say_left_out()
        items = self._items(ids)
        last = train.epochs * (len(items) // train.batch)
        model = self.stage.model()
        self.require_boxes(ids)
        chosen = self._open_run_dir()  # only now: a mistake must not set a finished run aside
        self._require_one_folder()
        self.require_same_inputs()
        if model_key(settings.run_dir) == self.key:
            if self.is_main and recorded_config(settings.run_dir) is None:
                write_config_again(settings.run_dir, self.key)
            checkpoint.load_weights(model, settings.run_dir / MODEL_FILE)
            self._finish(accelerator.prepare(model), last)
            return
        self.keep_crops([*ids, *self.inputs.eval_ids()])
        tuning = Tuning(**chosen) if chosen else tune(self, model, items)
        if self.is_main and not chosen:
            self._write_config(tuning)
        model, optimiser, micro, passes = self.prepare(model, tuning)
        first = checkpoint.restore(accelerator, model, settings.run_dir, self.key)
        self._open_logs(first)
        processes = accelerator.num_processes
        schedule = Training(
            items, settings.seed, train.batch, accelerator.process_index, processes, first, self.by_block
        )
        if first:
            self.say(f"resuming at step {first} of {last}")
        steps = f"{len(items)} items, {schedule.steps_per_epoch} steps an epoch"
        self.say(f"{steps}, {train.epochs} epochs, {processes} process(es)")
        batches = iter(self._batches(model, schedule, micro, ids))
        self._fit(model, optimiser, batches, passes, schedule)
        batches.close()
        self.check_fresh()
        if self.is_main:
            checkpoint.save_weights(accelerator.unwrap_model(model), settings.run_dir, self._metadata())
        accelerator.wait_for_everyone()
        self._finish(model, last)

    def _say_left_out(self) -> None:
        """Training studies whose box was not found."""
        if self.settings.needs_boxes:
            ids = set(self.inputs.training_fold_ids()) & self.inputs.without_box
            if ids:
                self.say(f"{len(ids)} studies without a box are left out of training, first {min(ids)}")

    def _items(self, ids: list[str]) -> list[Item]:
        """What there is to train on. Raises UsageError where that is too little."""
        settings, inputs = self.settings, self.inputs
        if settings.needs_boxes and not ids and inputs.training_fold_ids():
            line = "no study that could be trained on has a box"
            where, do = f"boxes={settings.boxes}", "give boxes by a stage=bbox that was trained longer"
            raise UsageError(line, where=where, do=do)
        items = self.stage.train_items(ids)
        if not items and self.inputs.segmented:
            raise UsageError(
                f"no study with a segmentation to train {settings.stage} on",
                where=settings.cache,
                do="build the cache with --segmentations DIR",
            )
        batch = settings.train.batch
        if len(items) < batch:
            raise UsageError(
                f"only {len(items)} training items for an effective batch of {batch}", do="set train.batch lower"
            )
        share(batch, 1, self.accelerator.num_processes)  # must divide it
        return items

    def prepare(self, model: nn.Module, tuning: Tuning) -> tuple[nn.Module, Any, int, int]:
        """Model and optimiser under Accelerate, and how a step is divided: items a pass, passes a step."""
        accelerator, train = self.accelerator, self.settings.train
        apply(tuning, self, model)
        micro, passes = share(train.batch, tuning.micro_batch, accelerator.num_processes)
        accelerator.gradient_accumulation_steps = passes
        if accelerator.process_index:  # dropout of its own; the first process goes on as it would alone
            torch.manual_seed(self.settings.seed + accelerator.process_index)
        return *accelerator.prepare(model, optimiser_of(model, train)), micro, passes

    def _fit(self, model: nn.Module, optimiser: Any, batches: Iterator[Batch], passes: int, schedule: Training) -> None:
        """All steps that are left of the schedule, with logs, scores and checkpoints in between."""
        settings, train = self.settings, self.settings.train
        first, last = schedule.step, train.epochs * schedule.steps_per_epoch
        micro = train.batch // passes // schedule.world
        scored = train.evaluate_every and bool(self.inputs.scored_ids())
        kept, started = time.monotonic(), time.monotonic()
        model.train()
        for step in range(first, last):
            if step % schedule.steps_per_epoch == 0:
                self.check_fresh()
            with memory_in_one_line(settings.run_dir / CONFIG_FILE, micro):
                line = self.step(model, optimiser, batches, passes, step, last)
            if (step + 1) % train.log_every == 0 or step + 1 == last:
                pace = (step + 1 - first) * train.batch / (time.monotonic() - started)
                self._log({**line, "items_per_second": pace}, step + 1, last)
            epoch, within = divmod(step + 1, schedule.steps_per_epoch)
            if not within and scored and epoch % train.evaluate_every == 0 and step + 1 < last:
                self._log_scores(predict(self, model, scored_only=True), step + 1)
                model.train()
            if self._agreed(time.monotonic() - kept) >= train.checkpoint_minutes * 60 and step + 1 < last:
                self.check_fresh()
                checkpoint.save(self.accelerator, model, settings.run_dir, step + 1, self.key)
                kept = time.monotonic()

    def step(
        self, model: nn.Module, optimiser: Any, batches: Iterator[Batch], passes: int, step: int, last: int
    ) -> dict[str, float]:
        """One optimiser step. Returns the undivided loss over all processes, the gradient norm and the learning rate."""
        accelerator, train = self.accelerator, self.settings.train
        rate = learning_rate(
            train.lr, train.warmup, (step + 1) * train.batch - train.batch // passes, last * train.batch
        )
        set_step(optimiser, rate, train.eps_form)
        losses, shown, norm = [], [], torch.zeros(())
        for _ in range(passes):
            batch = next(batches)
            shown.append(batch.entries)
            with accelerator.accumulate(model):
                terms = self.stage.loss(self.stage.forward(model, batch), batch.targets)
                # divided by the count over all processes, so that the mean over processes is the mean over all items
                everywhere = accelerator.reduce(counts(terms), reduction="sum")
                loss = total(terms, everywhere) * accelerator.num_processes
                losses.append(loss.detach())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), float("inf"))
                    losses = accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
                    self._require_finite(losses, float(norm), shown, step)
                optimiser.step()
                optimiser.zero_grad()
        self.overflows = self.overflows + 1 if optimiser.step_was_skipped else 0
        return {"loss": sum(losses) / passes, "gradient_norm": float(norm), "lr": rate}

    def _require_finite(self, losses: list[float], norm: float, shown: list[list[ScheduledItem]], step: int) -> None:
        """Raises UsageError, in all processes, before weights are spoiled; names the items of the passes in question.

        In fp16 a gradient may overflow now and then: that step is skipped and the loss scale lowered.
        """
        bad = [entries for loss, entries in zip(losses, shown, strict=True) if not math.isfinite(loss)]
        what = f"the loss is {sum(losses)}"
        if not bad and not math.isfinite(norm):
            if self.accelerator.scaler is not None and self.overflows < MOST_OVERFLOWS:
                return
            bad, what = shown, f"the gradient's norm is {norm}"
        if bad:
            items = gather_object([f"{entry.item.id} z {entry.item.start}" for entries in bad for entry in entries])
            where = ", ".join(sorted(set(items)))
            raise UsageError(f"{what} at step {step + 1}", where=where, do="look at these items, or lower train.lr")

    def _agreed(self, seconds: float) -> float:
        """The main process's: what all processes do together must not follow from each one's own clock."""
        if self.accelerator.num_processes == 1:
            return seconds
        return float(broadcast(torch.tensor(seconds, device=self.accelerator.device)))

    def _batches(self, model: nn.Module, schedule: Training, micro: int, ids: list[str]) -> Loader:
        """Images for the network; with data.bank= their features, after those that are not yet kept were made."""
        if self.settings.data.bank:
            bank = Bank(self, schedule.items)
            bank.fill(self.accelerator.unwrap_model(model))
            return BankLoader(self, bank, schedule, micro)
        return self.loader(schedule, micro, self.augmentation(), ids, targets=True, keep_chunks=self.by_block)
