"""metrics.jsonl: one line for each logged step and each score, without duplicates after a resume."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_schema.documents import write_whole
from cache_schema.errors import naming
from trainer.runs.file_names import METRICS_FILE


class MetricsLog:
    """Written by one process. Every line has `step`; a line of a score also has `score`."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / METRICS_FILE

    def lines(self) -> list[dict[str, Any]]:
        """All valid lines; truncated and damaged ones are skipped."""
        if not self.path.is_file():
            return []
        return [line for line in map(_parsed, self.path.read_text(errors="replace").splitlines()) if line is not None]

    def rewind(self, step: int) -> None:
        """Removes the lines after a step, before the run resumes from it."""
        self._keep(lambda line: line["step"] <= step)

    def append(self, step: int, values: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **finite(values)}) + "\n")

    def score(self, step: int, scores: list[dict[str, Any]]) -> None:
        """Writes the scores of a step, replacing earlier ones of the same step."""
        self._keep(lambda line: "score" not in line or line["step"] != step)
        for score in scores:
            self.append(step, {"score": score})

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if self.path.is_file():
            kept = "".join(json.dumps(line) + "\n" for line in self.lines() if wanted(line))
            write_whole(self.path, kept.encode())


def finite(value: Any) -> Any:
    """Nested values with null instead of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None
