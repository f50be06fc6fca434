"""metrics.jsonl: one line for each logged step and each score, none of them twice however often a run was killed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_schema.documents import write_whole
from cache_schema.errors import naming
from trainer.runs.files import METRICS_FILE


class MetricsLog:
    """A file that one process writes. Every line has `step`; a line of scores also `score`."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / METRICS_FILE

    def lines(self) -> list[dict[str, Any]]:
        """What was written; a line that a kill cut short, or that is damaged, is left out."""
        if not self.path.is_file():
            return []
        return [line for line in map(_parsed, self.path.read_text(errors="replace").splitlines()) if line is not None]

    def rewind(self, step: int) -> None:
        """Forgets what was logged after a step, before a run goes on from there."""
        self._keep(lambda line: line["step"] <= step)

    def append(self, step: int, values: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **_finite(values)}) + "\n")

    def score(self, step: int, scores: list[dict[str, Any]]) -> None:
        """The scores of a step, in place of those it may have already."""
        self._keep(lambda line: "score" not in line or line["step"] != step)
        for score in scores:
            self.append(step, {"score": score})

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if self.path.is_file():
            kept = "".join(json.dumps(line) + "\n" for line in self.lines() if wanted(line))
            write_whole(self.path, kept.encode())


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: null instead."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None
