"""The tracker that a run logs to besides metrics.jsonl. One that fails is one line: at the start an error, later on a loss that
no training is stopped for."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from cache_schema.errors import UsageError
from trainer.process.faults import in_one_line
from trainer.runs.files import METRICS_FILE
from trainer.runs.run_names import run_name
from trainer.settings.keyvalue import flat
from trainer.settings.settings import Settings

NONE, TENSORBOARD = "none", "tensorboard"
MOST_SAID = 200
"""characters of what a tracker says is wrong"""


class Tracking:
    def __init__(self, settings: Settings, accelerator: Accelerator, say: Callable[[str], None]):
        self.settings, self.accelerator, self.say = settings, accelerator, say

    def open(self, step: int) -> None:
        """TensorBoard forgets what was logged after a step. Raises UsageError where the tracker cannot be had."""
        tracker, name = self.settings.tracker, run_name(self.settings.run_dir)
        if tracker == NONE:
            return
        options = {TENSORBOARD: {"purge_step": step + 1}, "wandb": {"name": name}, "mlflow": {"run_name": name}}
        # TensorBoard would keep settings as one more run, each time that this one goes on
        project, config = ("tracker", None) if tracker == TENSORBOARD else ("cspine", flat(self.settings.dump()))
        try:
            self.accelerator.init_trackers(project, config, options)
        except Exception as error:  # each has a family of its own, down to its network's
            do = "mend that, or give tracker=none"
            raise UsageError(f"cannot be had ({_said(error)})", where=f"tracker={tracker}", do=do) from None

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
            line = f"tracker={self.settings.tracker} failed ({_said(error)}): the run goes on without it"
            self.say(f"{line}, and its log is {self.settings.run_dir / METRICS_FILE}")


def _said(error: Exception) -> str:
    line = in_one_line(error)
    text = str(line) if line is not None else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:MOST_SAID]
