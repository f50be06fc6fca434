"""The competition's test set: `test.csv` beside `test_images/`, and the submission with exactly its rows (reference 9)."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import TARGETS
from cache_schema.errors import UsageError, not_utf8
from cache_schema.store_path import Place
from trainer.answers.answer import Answer
from trainer.process.command import say
from trainer.trained.models import Models

CSV, IMAGES = "test.csv", "test_images"
COLUMNS = ("row_id", "StudyInstanceUID", "prediction_type")
EXPECTED = f"a CSV with the columns {', '.join(COLUMNS)}"
UNKNOWN = 0.5
"""where nothing at all is known of a target"""


class Asked(NamedTuple):
    """What the competition asks for."""

    images: Path
    rows: pd.DataFrame
    """row_id, id, target; in the order of test.csv"""

    @property
    def ids(self) -> set[str]:
        return set(self.rows["id"])


class Prior(NamedTuple):
    """What stands for studies without an answer."""

    values: Mapping[str, float]
    """by target"""
    origin: str
    """in words"""


def asked_of(source: Place) -> Asked | None:
    """The test set of the competition's folder, or of its `test_images`; None where no test.csv stands beside the images.

    Raises UsageError for a test.csv that is not as the competition has it.
    """
    if not isinstance(source, Path):
        return None
    folder = source.absolute().parent if source.absolute().name == IMAGES else source
    if not (folder / CSV).is_file() or not (folder / IMAGES).is_dir():
        return None
    return Asked(folder / IMAGES, _rows(folder / CSV))


def _rows(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeError as error:
        raise not_utf8(error) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError):
        raise UsageError("cannot be read as a CSV", where=path, expected=EXPECTED) from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise UsageError(f"has no column {missing[0]}", where=path, expected=EXPECTED)
    rows = table[list(COLUMNS)].set_axis(["row_id", "id", "target"], axis=1)
    if rows.empty:
        raise UsageError("has no rows", where=path, expected=EXPECTED)
    for what, wrong in (
        ("an empty field", (rows == "").any(axis=1)),
        (f"another prediction_type than {', '.join(TARGETS)}", ~rows["target"].isin(TARGETS)),
        ("a row_id that stands in an earlier line, too", rows["row_id"].duplicated()),
    ):
        if wrong.any():
            raise UsageError(f"line {int(wrong.to_numpy().argmax()) + 2} has {what}", where=path, expected=EXPECTED)
    return rows


def prior_of(models: Mapping[str, float | None], answers: Mapping[str, Answer]) -> Prior:
    """models: each target's prevalence, as far as the models record it; where they do not, the mean of the answers."""
    known = {name: value for name, value in models.items() if value is not None}
    outputs = pd.DataFrame([answer.outputs for answer in answers.values()], columns=list(TARGETS))
    mean = {name: float(value) for name, value in outputs.mean().items()} if len(outputs) else {}
    values = {name: known.get(name, mean.get(name, UNKNOWN)) for name in TARGETS}
    if all(name in known for name in TARGETS):
        return Prior(values, "the prevalence that the models record")
    rest = f"the mean of the {len(answers)} answered studies" if answers else f"{UNKNOWN}, for want of any answer"
    return Prior(values, f"the prevalence that the models record, else {rest}" if known else rest)


def submission_of(asked: Asked, answers: Mapping[str, Answer], models: Models, told: Collection[str]) -> pd.DataFrame:
    """row_id, fractured: the rows of test.csv in its order; a study without an answer gets the prior, which is said.

    told: ids of studies that are known to have no answer, and why.
    """
    prior = prior_of(models.priors, answers)
    missing = sorted(asked.ids - answers.keys())
    for id in missing:
        if id not in told:
            say(f"{id}: no study of this id in {asked.images}", sys.stderr)
    if missing:
        say(f"{len(missing)} of {len(asked.ids)} studies of {CSV} get {prior.origin}, first {missing[0]}", sys.stderr)
    values = [
        answers[id].outputs[target] if id in answers else prior.values[target]
        for id, target in zip(asked.rows["id"], asked.rows["target"], strict=True)
    ]
    return pd.DataFrame({"row_id": asked.rows["row_id"], "fractured": values})
