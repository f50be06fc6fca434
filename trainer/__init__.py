"""Studies and tables in, runs and tables out."""

from pathlib import Path
from typing import Any

__all__ = ["train"]


def train(**settings: Any) -> Path:
    """`train(stage="bbox", cache=..., out=..., train={"epochs": 2})`: the same as the command line. Returns the run's folder.

    None stands for a setting that is not given.

    Raises cache_schema.errors.CspineError for what the command line would answer in one line.
    """
    from trainer.run import run
    from trainer.settings.keyvalue import flat
    from trainer.settings.layers import load

    given = [pair for key, value in settings.items() for pair in flat({key: value}).items()]
    return run(load(f"{key}={value}" for key, value in given if value != ""))
