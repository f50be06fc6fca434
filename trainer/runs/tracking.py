"""The tracker that a run logs to besides metrics.jsonl. If it fails at the start, that is an error; later, the run continues
without it."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from cache_schema.errors import UsageError
from trainer.process.faults import in_one_line
from trainer.runs.file_names import METRICS_FILE
from trainer.runs.run_names import run_name
from trainer.settings.keyvalue import flat
from trainer.settings.settings import Settings

NONE, TENSORBOARD = "none", "tensorboard"
MOST_SHOWN = 200
"""characters of a tracker's error message that are shown"""


class Tracking:
    def __init__(self, settings: Settings, accelerator: Accelerator, say: Callable[[str], None]):
        self.settings, self.accelerator, self.say = settings, accelerator, say

    def open(self, step: int) -> None:
        """Starts the tracker; TensorBoard removes entries after the step. Raises UsageError if the tracker does not start."""
        tracker, name = self.settings.tracker, run_name(self.settings.run_dir)
        if tracker == NONE:
            return
        options = {TENSORBOARD: {"purge_step": step + 1}, "wandb": {"name": name}, "mlflow": {"run_name": name}}
        # TensorBoard would store settings as another run at each resume
        project, config = ("tracker", None) if tracker == TENSORBOARD else ("cspine", flat(self.settings.dump()))
        try:
            self.accelerator.init_trackers(project, config, options)
        except Exception as error:  # each tracker raises its own exceptions
            do = "solve this, or give tracker=none"
            raise UsageError(f"does not start ({_message(error)})", where=f"tracker={tracker}", do=do) from None

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self.accelerator.log(values, step=step))

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            self._try(tracker.finish)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            self.accelerator.trackers = []
            line = f"tracker={self.settings.tracker} failed ({_message(error)}): the run continues without it"
            self.say(f"{line}, and its log is {self.settings.run_dir / METRICS_FILE}")


def _message(error: Exception) -> str:
    line = in_one_line(error)
    text = str(line) if line is not None else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:MOST_SHOWN]
