"""Training and prediction under Accelerate: what happens to a batch, for every stage alike."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast, gather_object, set_seed
from torch import nn

from cache_schema.errors import CspineError, UsageError
from cache_schema.tables import write_table
from trainer import checkpoint
from trainer.config import Settings
from trainer.data.draws import Drawing
from trainer.data.loader import Batch, Loader
from trainer.data.order import Evaluation, Training
from trainer.data.source import TRIPLET_CHUNKS_BYTES, Source
from trainer.identity import (
    CONFIG_FILE,
    MODEL_FILE,
    check_weights,
    model_key,
    prediction_inputs,
    predictions_path,
    recorded_config,
    set_aside,
)
from trainer.inputs import Inputs
from trainer.losses import counts, total
from trainer.stages import STAGES, Stage

BETAS, EPSILON = (0.9, 0.999), 1e-6
"""reference 8; all parameters decay, biases and norms included"""


def learning_rate(peak: float, warmup: float, samples: int, total: int) -> float:
    """Linear warm-up, then cosine to 0 (reference 8): a function of the samples seen before a forward pass, and nothing else."""
    rising = warmup * total
    if samples < rising:
        return peak * samples / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (samples - rising) / max(1, total - rising)))


def share(batch: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """(items per process and forward pass, passes per optimiser step) with the effective batch kept."""
    if batch % processes:
        raise UsageError(
            f"train.batch={batch} cannot be shared by {processes} processes", expected="a multiple of their number"
        )
    each = batch // processes
    micro = next(size for size in range(min(micro_batch, each), 0, -1) if each % size == 0)
    return micro, each // micro


class Run:
    """One training or prediction in this process, with everything it holds open."""

    def __init__(self, settings: Settings, inputs: Inputs, key: str):
        self.settings, self.inputs, self.key = settings, inputs, key
        if settings.train.threads:
            torch.set_num_threads(settings.train.threads)
            cv2.setNumThreads(settings.train.threads)
        if settings.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.stage: Stage = STAGES[settings.stage](settings, inputs)
        precision = settings.train.precision
        on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in (
            "true",
            "1",
            "yes",
        )
        self.accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision=("fp16" if on_gpu else "no") if precision == "auto" else precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_dir=str(settings.run_dir),
        )
        set_seed(settings.seed, deterministic=False)

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def say(self, line: str) -> None:
        self.accelerator.print(line, flush=True)

    def train(self) -> None:
        """From scratch or from the checkpoint of this very run, to model.safetensors and what the fold holds out."""
        settings, accelerator = self.settings, self.accelerator
        train = settings.train
        if settings.backbone is not None:
            check_weights(settings, self.inputs, settings.backbone, stage="slice_fracture")
        ids = self.inputs.train_ids(segmented=self.inputs.segmented)
        items = self.stage.train_items(ids)
        micro, passes = share(train.batch, train.micro_batch, accelerator.num_processes)
        accelerator.gradient_accumulation_steps = passes
        if len(items) < train.batch:
            raise UsageError(
                f"only {len(items)} training items for an effective batch of {train.batch}", do="set train.batch lower"
            )
        model = self.stage.model()
        self.inputs.crop_boxes(ids)
        self._open_run_dir()  # only now: a mistake must not set a finished run aside
        if model_key(settings.run_dir) == self.key:
            checkpoint.load_weights(model, settings.run_dir / MODEL_FILE)
            self._finish(accelerator.prepare(model), 0)
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=train.lr, betas=BETAS, eps=EPSILON, weight_decay=train.weight_decay)
        model, optimiser = accelerator.prepare(model, optimiser)
        first = checkpoint.restore(accelerator, settings.run_dir, self.key)
        schedule = self._schedule(items, first)
        last = train.epochs * schedule.steps_per_epoch
        if first:
            self.say(f"resuming at step {first} of {last}")
        self.say(
            f"{len(items)} items, {schedule.steps_per_epoch} steps an epoch, {train.epochs} epochs, {accelerator.num_processes} process(es)"
        )

        batches = iter(self._loader(schedule, micro, drawing=self._drawing(), limit=None))
        scored = train.evaluate_every and bool(self.inputs.eval_ids(segmented=self.inputs.segmented))
        kept, started = time.monotonic(), time.monotonic()
        model.train()
        for step in range(first, last):
            if step % schedule.steps_per_epoch == 0:
                self.inputs.check_fresh()
            line = self._step(model, optimiser, batches, passes, step, last)
            if (step + 1) % train.log_every == 0 or step + 1 == last:
                pace = (step + 1 - first) * train.batch / (time.monotonic() - started)
                self._log({**line, "items_per_second": pace}, step + 1, last)
            ends_epoch = (step + 1) % schedule.steps_per_epoch == 0
            if time.monotonic() - kept >= train.checkpoint_minutes * 60 and step + 1 < last:
                self.inputs.check_fresh()
                checkpoint.save(accelerator, settings.run_dir, step + 1, self.key)
                kept = time.monotonic()
            epoch = (step + 1) // schedule.steps_per_epoch
            if ends_epoch and scored and epoch % train.evaluate_every == 0 and step + 1 < last:
                self._log_scores(self.predict(model, scored_only=True), step + 1)
                model.train()
        batches.close()
        self.inputs.check_fresh()
        if self._main:
            checkpoint.save_weights(accelerator.unwrap_model(model), settings.run_dir, self._metadata())
        accelerator.wait_for_everyone()
        self._finish(model, last)

    def _step(
        self, model: nn.Module, optimiser: Any, batches: Iterator[Batch], passes: int, step: int, last: int
    ) -> dict[str, float]:
        """One optimiser step. Returns the undivided loss over all processes, the gradient norm and the learning rate."""
        accelerator, train = self.accelerator, self.settings.train
        rate = learning_rate(
            train.lr, train.warmup, (step + 1) * train.batch - train.batch // passes, last * train.batch
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        losses, seen, norm = [], [], torch.zeros(())
        for _ in range(passes):
            batch = next(batches)
            seen += [f"{place.item.id} z {place.item.start}" for place in batch.places]
            with accelerator.accumulate(model):
                terms = self.stage.loss(self.stage.forward(model, batch), batch.targets)
                # divided by the count over all processes, so that the mean over processes is the mean over all items
                everywhere = accelerator.reduce(counts(terms), reduction="sum")
                loss = total(terms, everywhere) * accelerator.num_processes
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), float("inf"))
                optimiser.step()
                optimiser.zero_grad()
            losses.append(loss.detach())
        loss = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
        if not math.isfinite(loss):
            where = ", ".join(sorted(set(gather_object(seen))))
            raise CspineError(
                f"the loss is {loss} at step {step + 1}", where=where, do="look at these items, or lower train.lr"
            )
        return {"loss": loss, "gradient_norm": float(norm), "lr": rate}

    def predict(self, model: nn.Module, *, scored_only: bool = False) -> pd.DataFrame | None:
        """The stage's prediction table over the split, on the main process; None on the others."""
        ids = self.inputs.eval_ids(segmented=scored_only and self.inputs.segmented)
        items = self.stage.eval_items(ids)
        if not items:
            raise UsageError(
                "no study to predict on", where=self.settings.run_dir, do="give split=all or another fold="
            )
        accelerator, batch = self.accelerator, self.settings.train.eval_batch
        schedule = Evaluation(items, batch, accelerator.process_index, accelerator.num_processes)
        loader = self._loader(
            schedule, batch, Drawing(self.settings.data.size), limit=schedule.steps * batch, ids=ids, targets=False
        )
        model = accelerator.unwrap_model(model).eval()
        if accelerator.num_processes > 1:
            # batch norm's running statistics are each process's own; the main process's are the ones that are saved
            for buffer in model.buffers():
                broadcast(buffer)
        rows = []
        with torch.no_grad():
            for found in loader:
                with accelerator.autocast():
                    outputs = self.stage.forward(model, found)
                rows.append(self.stage.rows(outputs, found))
        everywhere = gather_object(rows)
        return self.stage.table(pd.concat(everywhere, ignore_index=True)) if self._main else None

    def predict_from(self, weights: Path) -> None:
        """mode=predict: the predictions of a finished run's weights, into the folder of the settings' own fold and seed."""
        held = model_key(self.settings.run_dir)
        if held not in (None, self.key):
            raise UsageError("holds another run", where=self.settings.run_dir, do="give another out= or seed=")
        model = self.stage.model()
        checkpoint.load_weights(model, weights / MODEL_FILE)
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        self._finish(self.accelerator.prepare(model), 0)

    def _finish(self, model: nn.Module, step: int) -> None:
        """Predictions of what is held out, and their scores."""
        settings = self.settings
        if settings.fold == "all" and settings.split == "held_out":
            self.say(f"done: {settings.run_dir} (fold=all holds nothing out, so nothing is predicted or scored)")
        else:
            table = self.predict(model)
            if self._main:
                made_by = f"{settings.stage} {settings.variant} fold {settings.fold} seed {settings.seed}"
                write_table(
                    predictions_path(settings), table, made_by, prediction_inputs(settings, self.inputs, self.key)
                )
                if settings.split == "held_out" and self.inputs.eval_ids(segmented=self.inputs.segmented):
                    self._log_scores(table, step)
            self.say(f"done: {settings.run_dir}")
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _open_run_dir(self) -> None:
        """config.yaml before the first step; a run of other settings is set aside, never overwritten."""
        run_dir = self.settings.run_dir
        if self._main:
            aside = set_aside(run_dir, self.key)
            if aside:
                self.say(f"{run_dir} held a run of other settings or inputs; it is now {aside}")
            run_dir.mkdir(parents=True, exist_ok=True)
            if recorded_config(run_dir) is None:
                new = run_dir / f".{CONFIG_FILE}.new"
                new.write_text(yaml.safe_dump({"key": self.key, **self.settings.dump()}, sort_keys=False))
                new.rename(run_dir / CONFIG_FILE)
        self.accelerator.wait_for_everyone()
        if self.settings.tracker != "none":
            self.accelerator.init_trackers("tracker")

    def _schedule(self, items: list, step: int) -> Training:
        accelerator, settings = self.accelerator, self.settings
        return Training(
            items,
            settings.seed,
            settings.train.batch,
            accelerator.process_index,
            accelerator.num_processes,
            step,
            self.stage.by_block,
        )

    def _drawing(self) -> Drawing:
        settings = self.settings
        return Drawing(settings.data.size, settings.seed, settings.augment, settings.data.thin)

    def _loader(
        self,
        schedule,
        batch: int,
        drawing: Drawing,
        limit: int | None,
        ids: list[str] | None = None,
        targets: bool = True,
    ) -> Loader:
        data = self.settings.data
        ids = self.inputs.train_ids(segmented=self.inputs.segmented) if ids is None else ids
        keep = (
            int(data.ram_gb * 2**30) if data.resident == "ram" else TRIPLET_CHUNKS_BYTES if self.stage.by_block else 0
        )
        source = Source(
            self.settings.cache, schedule, drawing, self.inputs.crop_boxes(ids), data.intensity, keep, limit
        )
        return Loader(source, batch, data, self.accelerator.device, self.stage.targets if targets else None)

    def _metadata(self) -> dict[str, str]:
        settings = self.settings
        return {
            "key": self.key,
            "pixel_hash": self.inputs.cache.pixel_hash,
            "config": json.dumps(settings.dump(), sort_keys=True),
            "inputs": json.dumps(self.inputs.training_digests(), sort_keys=True),
            "fold": str(settings.fold),
            "seed": str(settings.seed),
        }

    def _log(self, values: dict[str, float], step: int, last: int) -> None:
        """A line to metrics.jsonl and the tracker, and a shorter one to the terminal."""
        self.accelerator.log(values, step=step)
        if self._main:
            self._append({"step": step, **values})
            left = (last - step) * self.settings.train.batch / values["items_per_second"]
            pace = f"{values['items_per_second']:.1f} items/s"
            self.say(f"step {step}/{last}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  {pace}  {left:.0f} s left")

    def _log_scores(self, table: pd.DataFrame | None, step: int) -> None:
        if table is None:
            return
        for score in self.stage.scores(table):
            self._append({"step": step, "score": score._asdict()})
            beside = f"{score.baseline} {score.baseline_value:.4f}, ratio {score.ratio:.3f} on {score.n} studies"
            self.say(f"score: {score.metric} {score.value:.4f}, {beside}")

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.settings.run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
