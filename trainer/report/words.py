"""What the card and the report say in words."""

import textwrap
from collections.abc import Iterable

from trainer.look.page import shortened


def model_names(stage: str, runs: Iterable[str]) -> str:
    """Such as `bbox: 3 (01B/fold0-seed1, …)`: how many runs of a stage answered, and the first one's name."""
    names = [name.removeprefix(f"{stage}-") for name in runs]
    return (
        f"{stage}: {len(names)} ({shortened(names[0], 24)}{', …' if len(names) > 1 else ''})"
        if names
        else f"{stage}: 0"
    )


def wrapped(sentence: str, most: int) -> list[str]:
    """Lines of at most `most` letters; those after the first are indented."""
    return textwrap.wrap(sentence, most, subsequent_indent="  ") or [""]
