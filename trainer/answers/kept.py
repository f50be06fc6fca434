"""Answers as files: JSON with a digest, and what they were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache_schema import StudyRecord
from cache_schema.documents import canonical_json, digest_of, write_whole
from trainer.answers.answer import Answer, Flag, SuspectedSlice

VERSION = 1
"""to be raised when an answer is computed or written differently"""


def save_answer(path: Path, answer: Answer, made_from: Mapping[str, Any]) -> None:
    """made_from: digests of the study, the models and the settings."""
    document = {"version": VERSION, "made_from": dict(made_from), "answer": document_of(answer)}
    write_whole(path, canonical_json(document | {"digest": digest_of(document)}))


def load_answer(path: Path, made_from: Mapping[str, Any]) -> Answer | None:
    """None if there is none, if it was made from something else, or if it is damaged."""
    found = load_kept(path)
    return found[0] if found is not None and found[1] == made_from else None


def load_kept(path: Path) -> tuple[Answer, dict[str, Any]] | None:
    """An answer and what it was made from; None if there is none, if another version wrote it, or if it is damaged."""
    try:
        document = json.loads(path.read_bytes())
        digest = document.pop("digest")
        if digest == digest_of(document) and document["version"] == VERSION:
            return answer_of(document["answer"]), document["made_from"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def document_of(answer: Answer) -> dict[str, Any]:
    """Plain values, which JSON keeps exactly."""
    return {
        "record": answer.record.model_dump(mode="json"),
        "z": answer.z.tolist(),
        "outputs": dict(answer.outputs),
        "box": list(answer.box),
        "z_range": list(answer.z_range),
        "box_source": answer.box_source,
        "models": {stage: list(names) for stage, names in answer.models.items()},
        "calibrated": None if answer.calibrated is None else dict(answer.calibrated),
        "curves": None if answer.curves is None else answer.curves.to_dict("list"),
        "slices": [each._asdict() for each in answer.slices],
        "flags": [each._asdict() for each in answer.flags],
        "outside": dict(answer.outside),
        "seconds": dict(answer.seconds),
    }


def answer_of(document: Mapping[str, Any]) -> Answer:
    """The inverse of `document_of`. Raises ValueError, KeyError or TypeError for another document."""
    record = StudyRecord.model_validate_json(canonical_json(document["record"]))
    changed = {
        "record": record,
        "z": np.array(document["z"], np.float64),
        "box": tuple(document["box"]),
        "z_range": tuple(document["z_range"]),
        "models": {stage: tuple(names) for stage, names in document["models"].items()},
        "curves": None if document["curves"] is None else pd.DataFrame(document["curves"]),
        "slices": tuple(SuspectedSlice(**each) for each in document["slices"]),
        "flags": tuple(Flag(**each) for each in document["flags"]),
    }
    return Answer(**{**document, **changed})
