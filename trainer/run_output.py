"""The output of a run: its settings, logs, exposure, predictions and scores."""

import json
import platform
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
from trainer.answers.unlike import RANGE, training_range
from trainer.inference import predict
from trainer.leakage import exposure
from trainer.leakage.groups import Exposure
from trainer.runs import checkpoint
from trainer.runs.agreement import PACKAGES
from trainer.runs.file_names import CONFIG_FILE, MODEL_FILE
from trainer.runs.identity import config_file, model_key, prediction_inputs, predictions_path, recorded_config
from trainer.runs.inputs import Inputs
from trainer.runs.metrics_log import MetricsLog
from trainer.runs.run_folder import make_room, remove_checkpoints
from trainer.runs.tracking import Tracking
from trainer.runs.weights import MADE_WITH, version_of
from trainer.session import Session
from trainer.settings.settings import Settings
from trainer.tuning.tuning import Tuning

FOLDER_SECONDS = 60
"""delay with which a network file system may show another machine's folder"""


class RunOutput(Session):
    """A session with a run's folder, logs and tracker."""

    def __init__(self, settings: Settings, inputs: Inputs, key: str, seen: Exposure | None = None):
        """seen: the exposure to store with the weights (trainer.leakage.exposure)."""
        super().__init__(settings, inputs, key)
        self.seen = seen
        self.metrics_log = MetricsLog(settings.run_dir)
        self.tracking = Tracking(settings, self.accelerator, self.say)

    def predict_from(self, weights: Path) -> None:
        """mode=predict: predicts with a finished run's weights, into the folder of these settings."""
        held = model_key(self.settings.run_dir)
        if held not in (None, self.key):
            raise UsageError("holds another run", where=self.settings.run_dir, do="set another out= or seed=")
        self.require_same_inputs()
        model = self.stage.model()
        checkpoint.load_weights(model, weights / MODEL_FILE)
        if self.is_main:
            self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        self._finish(self.accelerator.prepare(model), 0)

    def _finish(self, model: nn.Module, step: int) -> None:
        """Predicts the split and scores it."""
        settings = self.settings
        if self.is_main and self.seen is not None:
            # first, so that old predictions never lie beside a new exposure
            predictions_path(settings).unlink(missing_ok=True)
            exposure.keep(settings, self.key, self.seen)
        if settings.fold == "all" and settings.split == "held_out":
            self.say(f"done: {settings.run_dir} (fold=all holds nothing out, so nothing is predicted or scored)")
        else:
            table = predict(self, model)
            self.check_fresh()
            if table is not None:
                made_by = f"{settings.stage} {settings.variant} fold {settings.fold} seed {settings.seed}"
                inputs = prediction_inputs(settings, self.inputs, self.key)
                write_table(predictions_path(settings), table, made_by, inputs)
                if settings.split == "held_out" and self.inputs.scored_ids():
                    self._log_scores(table, step)
            self.say(f"done: {settings.run_dir}")
        self.tracking.close()
        if self.is_main and settings.mode == "train":
            remove_checkpoints(settings.run_dir)

    def _require_one_folder(self) -> bool:
        """Whether the main process sees finished weights. Raises UsageError unless all processes see its folder and checkpoint."""
        (seen,) = broadcast_object_list([self._seen() if self.is_main else None])
        until = time.monotonic() + FOLDER_SECONDS
        while (own := self._seen()) != seen and time.monotonic() < until:
            time.sleep(1)
        if not all(gather_object([own == seen])):
            line, do = "is not the same folder for all processes", "set out= to a folder that all machines share"
            raise UsageError(line, where=self.settings.run_dir, do=do)
        return seen[0]

    def _seen(self) -> tuple[bool, int] | None:
        """Of this run's folder: whether it holds finished weights, and the step of its checkpoint; None if there is no folder."""
        run_dir = self.settings.run_dir
        return (model_key(run_dir) == self.key, checkpoint.position(run_dir, self.key)) if run_dir.is_dir() else None

    def _open_run_dir(self) -> dict[str, Any] | None:
        """Makes the run's folder. Moves runs of other settings and damaged files aside. Returns the earlier `chosen` of this run."""
        run_dir, chosen = self.settings.run_dir, None
        self.accelerator.wait_for_everyone()
        if self.is_main:
            for line in (*make_room(run_dir, self.key), *checkpoint.set_damaged_aside(run_dir)):
                self.say(line)
            run_dir.mkdir(parents=True, exist_ok=True)
            for unfinished in run_dir.glob(".*.part"):  # of a killed process
                unfinished.unlink()
            chosen = (recorded_config(run_dir) or {}).get("chosen")
        (chosen,) = broadcast_object_list([chosen])
        return chosen

    def _write_config(self, tuning: Tuning) -> None:
        values = {"key": self.key, **self.settings.record(), "chosen": asdict(tuning)}
        write_whole(self.settings.run_dir / CONFIG_FILE, config_file(values))

    def _open_logs(self, step: int) -> None:
        """Opens the logs, and removes entries after this step."""
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
            MADE_WITH: json.dumps(
                {name: version_of(name) for name in PACKAGES} | {"python": platform.python_version()}
            ),
            RANGE: training_range(self.inputs).to_json(),
        }

    def _log(self, values: dict[str, float], step: int, last: int) -> None:
        """Logs to metrics.jsonl, the tracker and, in short, the terminal."""
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
