"""Training with Accelerate, the same for every stage."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object

from cache_schema.errors import UsageError
from trainer.data.items import Item
from trainer.data.loader import Batch, Loader
from trainer.data.order import ScheduledItem, Training
from trainer.inference import predict
from trainer.models import Network
from trainer.optimiser import learning_rate, optimiser_of, set_step
from trainer.run_output import RunOutput
from trainer.runs import checkpoint
from trainer.runs.file_names import CONFIG_FILE, MODEL_FILE
from trainer.runs.identity import check_weights, recorded_config
from trainer.runs.run_folder import write_config_again
from trainer.stages.losses import counts, total
from trainer.tuning.feature_bank import Bank, BankLoader
from trainer.tuning.micro_batch import explain_out_of_memory, split_batch
from trainer.tuning.tuning import Tuning, apply, tune

MOST_OVERFLOWS = 40
"""consecutive fp16 steps with overflow; each halves the loss scale, and sixteen reduce its initial value to 1"""


class Run(RunOutput):
    """One training or prediction in this process."""

    overflows = 0
    """number of consecutive skipped steps (fp16)"""

    def train(self) -> None:
        """Trains from scratch or from this run's checkpoint, saves the weights, and predicts the held-out fold."""
        settings, accelerator, train = self.settings, self.accelerator, self.settings.train
        if settings.backbone is not None:
            check_weights(settings, self.inputs.cache.pixel_hash, settings.backbone, stage=settings.facts.backbone)
        ids = self.inputs.train_ids()
        items = self.training_items(ids)
        last = train.epochs * (len(items) // train.batch)
        model = self.stage.model()
        self.require_boxes(ids)
        chosen = self._open_run_dir()  # after all checks: a wrong setting must not move a finished run
        trained = self._require_one_folder()
        self.require_same_inputs()
        if trained:
            if self.is_main and recorded_config(settings.run_dir) is None:
                write_config_again(settings.run_dir, self.key)
            checkpoint.load_weights(model, settings.run_dir / MODEL_FILE)
            self._finish(accelerator.prepare(model), last)
            return
        self.keep_crops([*ids, *self.inputs.eval_ids()])
        tuning = Tuning(**chosen) if chosen else tune(self, model, items)
        if self.is_main and not chosen:
            self._write_config(tuning)
        prepared, optimiser, micro, passes = self.prepare(model, tuning)
        first = checkpoint.restore(accelerator, prepared, settings.run_dir, self.key)
        self._open_logs(first)
        processes = accelerator.num_processes
        schedule = Training(
            items, settings.seed, train.batch, accelerator.process_index, processes, first, self.by_block
        )
        if first:
            self.say(f"resuming at step {first} of {last}")
        steps = f"{len(items)} items, {schedule.steps_per_epoch} steps an epoch"
        self.say(f"{steps}, {train.epochs} epochs, {processes} process(es)")
        with closing(iter(self._batches(model, schedule, micro, ids))) as batches:
            self._fit(prepared, optimiser, batches, passes, schedule)
        self.check_fresh()
        if self.is_main:
            checkpoint.save_weights(accelerator.unwrap_model(prepared), settings.run_dir, self._metadata())
        accelerator.wait_for_everyone()
        self._finish(prepared, last)

    def training_items(self, ids: list[str]) -> list[Item]:
        """The training items of these studies. Raises UsageError if there are too few."""
        settings, inputs, batch = self.settings, self.inputs, self.settings.train.batch
        if settings.needs_boxes:
            every = inputs.training_fold_ids()
            if without := set(every) & inputs.without_box:
                self.say(f"{len(without)} studies without a box are left out of training, first {min(without)}")
            if every and not ids:
                do = "give boxes by a stage=bbox that was trained longer"
                raise UsageError("no training study has a box", where=f"boxes={settings.boxes}", do=do)
        items = self.stage.train_items(ids)
        if not items and inputs.segmented:
            line, do = f"no study with a segmentation to train {settings.stage} on", "build the cache with"
            raise UsageError(line, where=settings.cache, do=f"{do} --segmentations DIR")
        if len(items) < batch:
            line = f"only {len(items)} training items for an effective batch of {batch}"
            raise UsageError(line, do="set train.batch lower")
        split_batch(batch, 1, self.accelerator.num_processes)  # raises UsageError unless it divides the batch
        return items

    def prepare(self, model: Network, tuning: Tuning) -> tuple[Any, Any, int, int]:
        """Prepares model and optimiser for Accelerate. Returns them, the items per pass and the passes per step."""
        accelerator, train = self.accelerator, self.settings.train
        apply(tuning, self, model)
        micro, passes = split_batch(train.batch, tuning.micro_batch, accelerator.num_processes)
        accelerator.gradient_accumulation_steps = passes
        if accelerator.process_index:  # each process has its own dropout; the first keeps the seed of a single process
            torch.manual_seed(self.settings.seed + accelerator.process_index)
        return *accelerator.prepare(model, optimiser_of(model, train)), micro, passes

    def _fit(self, model: Any, optimiser: Any, batches: Iterator[Batch], passes: int, schedule: Training) -> None:
        """The remaining steps of the schedule, with logs, scores and checkpoints."""
        settings, train = self.settings, self.settings.train
        first, last = schedule.step, train.epochs * schedule.steps_per_epoch
        micro = train.batch // passes // schedule.world
        scored = train.evaluate_every and bool(self.inputs.scored_ids())
        kept, started = time.monotonic(), time.monotonic()
        model.train()
        for step in range(first, last):
            if step % schedule.steps_per_epoch == 0:
                self.check_fresh()
            with explain_out_of_memory(settings.run_dir / CONFIG_FILE, micro):
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
        self, model: Any, optimiser: Any, batches: Iterator[Batch], passes: int, step: int, last: int
    ) -> dict[str, float]:
        """One optimiser step. Returns the mean loss over all processes, the gradient norm and the learning rate."""
        accelerator, train = self.accelerator, self.settings.train
        seen = (step + 1) * train.batch - train.batch // passes
        rate = learning_rate(train.lr, train.warmup, seen, last * train.batch)
        set_step(optimiser, rate, train.eps_form)
        losses, shown, norm = [], [], torch.zeros(())
        for _ in range(passes):
            batch = next(batches)
            shown.append(batch.entries)
            with accelerator.accumulate(model):
                terms = self.stage.loss(self.stage.forward(model, batch), batch.targets)
                # with counts over all processes, so that the mean over processes is the mean over all items
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
        """Raises UsageError in all processes, with the items of the passes, before the optimiser changes the weights.

        An fp16 gradient may overflow now and then: the optimiser skips the step, and the loss scale is halved.
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
        """The main process's value: all processes must decide the same, whatever their own clocks say."""
        if self.accelerator.num_processes == 1:
            return seconds
        return float(broadcast(torch.tensor(seconds, device=self.accelerator.device)))

    def _batches(self, model: Any, schedule: Training, micro: int, ids: list[str]) -> Loader:
        """Batches of images, or with data.bank= of their features, after making those that are missing."""
        if self.settings.data.bank:
            bank = Bank(self, schedule.items)
            bank.fill(model)
            return BankLoader(self, bank, schedule, micro)
        return self.loader(schedule, micro, self.augmentation(), ids, targets=True, keep_chunks=self.by_block)
