"""What a run writes into its folder, and when: settings, logs, exposure, predictions and scores."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from cache_schema.documents import write_whole
from cache_schema.errors import UsageError
from cache_schema.tables import write_table
from trainer.inference import predict
from trainer.leakage import exposure
from trainer.runs import checkpoint
from trainer.runs.files import CONFIG_FILE, MODEL_FILE
from trainer.runs.identity import (
    config_file,
    model_key,
    prediction_inputs,
    predictions_path,
    recorded_config,
)
from trainer.runs.inputs import Inputs
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.run_folder import make_room, remove_checkpoints
from trainer.runs.tracking import Tracking
from trainer.session import Session
from trainer.settings.settings import Settings
from trainer.tuning.tuning import Tuning

FOLDER_SECONDS = 60
"""a network file system may show a folder that another machine has made so much later"""


class RunOutput(Session):
    """A session with a run's folder, logs and tracker."""

    def __init__(self, settings: Settings, inputs: Inputs, key: str, seen: pd.DataFrame | None = None):
        """seen: the exposure that is kept beside the weights (trainer.leakage.exposure)."""
        super().__init__(settings, inputs, key)
        self.seen = seen
        self.metrics_log = MetricsLog(settings.run_dir)
        self.tracking = Tracking(settings, self.accelerator, self.say)

    def predict_from(self, weights: Path) -> None:
        """mode=predict: the predictions of a finished run's weights, into the folder of the settings' own fold and seed."""
        held = model_key(self.settings.run_dir)
        if held not in (None, self.key):
            raise UsageError("holds another run", where=self.settings.run_dir, do="give another out= or seed=")
        self.require_same_inputs()
        model = self.stage.model()
        checkpoint.load_weights(model, weights / MODEL_FILE)
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        self._finish(self.accelerator.prepare(model), 0)

    def _finish(self, model: nn.Module, step: int) -> None:
        """Predictions of what is held out, and their scores."""
        settings = self.settings
        if self.is_main and self.seen is not None:
            # never predictions beside the exposure of others
            predictions_path(settings).unlink(missing_ok=True)
            exposure.keep(settings, self.key, self.seen)
        if settings.fold == "all" and settings.split == "held_out":
            self.say(f"done: {settings.run_dir} (fold=all holds nothing out, so nothing is predicted or scored)")
        else:
            table = predict(self, model)
            self.check_fresh()
            if self.is_main:
                made_by = f"{settings.stage} {settings.variant} fold {settings.fold} seed {settings.seed}"
                write_table(
                    predictions_path(settings), table, made_by, prediction_inputs(settings, self.inputs, self.key)
                )
                if settings.split == "held_out" and self.inputs.scored_ids():
                    self._log_scores(table, step)
            self.say(f"done: {settings.run_dir}")
        self.tracking.close()
        if self.is_main and settings.mode == "train":
            remove_checkpoints(settings.run_dir)

    def _require_one_folder(self) -> None:
        """All processes must see the folder that the main one made, and go on from the same step."""
        run_dir, until = self.settings.run_dir, time.monotonic() + FOLDER_SECONDS
        while not run_dir.is_dir() and time.monotonic() < until:
            time.sleep(1)
        found = gather_object(
            [(run_dir.is_dir(), model_key(run_dir) == self.key, checkpoint.position(run_dir, self.key))]
        )
        if len(set(found)) > 1:
            raise UsageError(
                "is not the same folder for all processes", where=run_dir, do="give an out= that all machines share"
            )

    def _open_run_dir(self) -> dict[str, Any] | None:
        """A run of other settings, and what is damaged, is set aside, never overwritten. Returns what this run chose, where it
        was begun."""
        run_dir, chosen = self.settings.run_dir, None
        self.accelerator.wait_for_everyone()
        if self.is_main:
            for line in (*make_room(run_dir, self.key), *checkpoint.set_damaged_aside(run_dir)):
                self.say(line)
            run_dir.mkdir(parents=True, exist_ok=True)
            for unfinished in run_dir.glob(".*.part"):  # by a process that was killed over it
                unfinished.unlink()
            chosen = (recorded_config(run_dir) or {}).get("chosen")
        (chosen,) = broadcast_object_list([chosen])
        return chosen

    def _write_config(self, tuning: Tuning) -> None:
        values = {"key": self.key, **self.settings.record(), "chosen": asdict(tuning)}
        write_whole(self.settings.run_dir / CONFIG_FILE, config_file(values))

    def _open_logs(self, step: int) -> None:
        """What was logged after a step is forgotten, here and in TensorBoard."""
        if self.is_main:
            self.metrics_log.rewind(step)
        self.tracking.open(step)

    def _metadata(self) -> dict[str, str]:
        settings = self.settings
        return {
            "key": self.key,
            "version": str(settings.facts.version),
            "pixel_hash": self.inputs.cache.pixel_hash,
            "config": json.dumps(settings.record(), sort_keys=True),
            "inputs": json.dumps(self.inputs.training_digests(), sort_keys=True),
            "fold": str(settings.fold),
            "seed": str(settings.seed),
        }

    def _log(self, values: dict[str, float], step: int, last: int) -> None:
        """A line to metrics.jsonl and the tracker, and a shorter one to the terminal."""
        self.tracking.log(values, step)
        if self.is_main:
            self.metrics_log.append(step, values)
            left = (last - step) * self.settings.train.batch / values["items_per_second"]
            pace = f"{values['items_per_second']:.1f} items/s"
            self.say(f"step {step}/{last}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  {pace}  {left:.0f} s left")

    def _log_scores(self, table: pd.DataFrame | None, step: int) -> None:
        if table is None:
            return
        scores = self.stage.scores(table)
        self.metrics_log.score(step, [score._asdict() for score in scores])
        self.tracking.log({f"score/{score.metric}": score.value for score in scores}, step)
        for score in scores:
            beside = f"{score.baseline} {score.baseline_value:.4f}, ratio {score.ratio:.3f} on {score.n} studies"
            self.say(f"score: {score.metric} {score.value:.4f}, {beside}")
