"""Trains the stages on studies and tables, makes tables from their predictions, and answers for new studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.predictor.predictor import Predictor

__all__ = ["Predictor", "train"]


def __getattr__(name: str) -> Any:
    """Predictor, whose import takes seconds, on first use."""
    if name != "Predictor":
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer.predictor.predictor import Predictor

    return Predictor


def train(**settings: Any) -> Path:
    """`train(stage="bbox", cache=..., out=..., train={"epochs": 2})`: the same as the command line. Returns the run's folder.

    None means that a setting is not given. Raises cache_schema.errors.CspineError where the command line prints an error.
    """
    from trainer.run import run
    from trainer.settings.keyvalue import flat
    from trainer.settings.layers import load

    given = [pair for key, value in settings.items() for pair in flat({key: value}).items()]
    return run(load(f"{key}={value}" for key, value in given if value != ""))
