"""How far to believe a probability: a calibration of each target, fitted on out-of-fold predictions.

calibrated = sigmoid(slope x logit(probability) + intercept), with the slope at least 0, so that no order is turned round:
`identity` (1, 0), `temperature` (slope, 0) or `platt` (both fitted), whichever has the lowest log loss on folds that it was
not fitted on. The labels count alike, without the competition's weights: these double the positives, which shifts a
probability upwards (0.072 towards 0.103).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter

from cache_schema import TARGETS
from cache_schema.documents import canonical_json, digest_of, write_whole
from cache_schema.errors import CacheError
from trainer.scores.reliability import (
    SENSITIVITIES,
    Bounded,
    OperatingPoint,
    Reliability,
    auc,
    log_loss,
    operating_point,
    reliability,
    roc,
)
from trainer.scores.scores import MAKE_AGAIN, table_lines

Method = Literal["identity", "temperature", "platt"]
METHODS: tuple[Method, ...] = get_args(Method)
"""of two that are equally good the earlier one is taken"""
CLIP = 1e-6
"""probabilities are clipped to [CLIP, 1 - CLIP]: a sigmoid in float32 gives 0 and 1, whose logits would outweigh all others"""
LEAST_POSITIVES = 20
"""for operating points"""
SUFFIX = "_calibrated"


@dataclass(frozen=True)
class TargetCalibration:
    """One target's calibration; without a method, and with the reason in `missing`, where there is nothing to cross-fit."""

    n: int
    """held-out studies with a prediction and a label"""
    positives: int
    prevalence: float | None
    method: Method | None = None
    slope: Annotated[float, Field(ge=0)] | None = None
    intercept: float | None = None
    before: Reliability | None = None
    after: Reliability | None = None
    """of values each of which was calibrated without its own fold; the method was chosen by their log loss"""
    auc: Bounded | None = None
    roc: tuple[tuple[int, int], ...] = ()
    """(false positives, true positives) of the probabilities as they were, at falling thresholds"""
    operating_points: tuple[OperatingPoint, ...] = ()
    """thresholds of values that the whole calibration gives"""
    missing: str = ""
    """why there is no calibration, or no operating point"""

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """(n,) -> (n,) float64; NaN stays. Needs a method."""
        assert self.slope is not None and self.intercept is not None
        return sigmoid(self.slope * logits(probabilities) + self.intercept)


@dataclass(frozen=True)
class Calibration:
    """Of all targets, and what it was made from."""

    made_by: str
    inputs: Mapping[str, str]
    """name -> digest"""
    targets: Mapping[str, TargetCalibration]

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Raises CacheError if the file is not as `write` wrote it."""
        data = path.read_bytes()
        try:
            document = json.loads(data)
            if canonical_json(document) != data:
                raise CacheError("is not in canonical form", do=MAKE_AGAIN)
            return cls.from_document(document)
        except CacheError as error:
            error.where = path
            raise
        except ValueError:
            raise CacheError("cannot be read as a calibration", where=path, do=MAKE_AGAIN) from None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Calibration":
        """Raises CacheError if it is not what `document` gave."""
        try:
            fields = dict(document)
            if fields.pop("digest") != digest_of(fields):
                raise CacheError("does not match its digest", do=MAKE_AGAIN)
            targets = sorted(fields["targets"].items(), key=lambda target: TARGETS.index(target[0]))
            fields["targets"] = dict(targets)
            return _adapter().validate_python(fields)
        except (ValueError, TypeError, KeyError, AttributeError):  # pydantic's are ValueErrors
            raise CacheError("cannot be read as a calibration", do=MAKE_AGAIN) from None

    def document(self) -> dict[str, Any]:
        """As JSON has it, with `digest`, the digest of all the rest."""
        fields = _adapter().dump_python(self, mode="json")
        return fields | {"digest": digest_of(fields)}

    def write(self, path: Path) -> None:
        write_whole(path, canonical_json(self.document()))

    @property
    def usable(self) -> dict[str, TargetCalibration]:
        """The targets that have a calibration."""
        return {name: target for name, target in self.targets.items() if target.method is not None}

    def apply(self, outputs: Mapping[str, float]) -> dict[str, float]:
        """target -> probability, to the same calibrated. Targets without a calibration are left out."""
        own = {name: target for name, target in self.usable.items() if name in outputs}
        return {name: float(target(np.array([outputs[name]]))[0]) for name, target in own.items()}

    def columns(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with `<target>_calibrated` after its other columns. Targets without a calibration are left out."""
        own = {name: target for name, target in self.usable.items() if name in frame}
        found = {f"{name}{SUFFIX}": target(frame[name].to_numpy(np.float64)) for name, target in own.items()}
        return frame.assign(**found)


@cache
def _adapter() -> TypeAdapter[Calibration]:
    return TypeAdapter(Calibration)


def calibrate(predictions: pd.DataFrame, labels: pd.DataFrame, made_by: str, inputs: Mapping[str, str]) -> Calibration:
    """predictions: id, fold (null where not held out), patient_overall, C1..C7. labels: id, patient_overall, C1..C7 (0, 1, null).

    inputs: name -> digest of what the two are.
    """
    held_out = predictions[predictions["fold"].notna()]
    rows = held_out.merge(labels[["id", *TARGETS]], on="id", suffixes=("", "_true"), validate="one_to_one")
    targets = {}
    for name in TARGETS:
        known = rows[rows[f"{name}_true"].notna()]
        columns = (known[name], known[f"{name}_true"], known["fold"])
        targets[name] = calibrate_target(*(column.to_numpy(np.float64) for column in columns))
    return Calibration(made_by, dict(inputs), targets)


def calibrate_target(probabilities: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> TargetCalibration:
    """All (n,): out-of-fold probabilities, 0 or 1, and the fold that each study was held out in."""
    n, positives = len(labels), int(labels.sum())
    counted = TargetCalibration(n, positives, positives / n if n else None)
    if why := _not_to_fit(n, positives, len(np.unique(folds))):
        return replace(counted, missing=why)
    given = logits(probabilities)
    held_out = {method: sigmoid(cross_fitted(method, given, labels, folds)) for method in METHODS}
    method = min(METHODS, key=lambda name: log_loss(held_out[name], labels))
    slope, intercept = fit(method, given, labels)
    whole = sigmoid(slope * given + intercept)
    enough = positives >= LEAST_POSITIVES
    return replace(
        counted,
        method=method,
        slope=slope,
        intercept=intercept,
        before=reliability(sigmoid(given), labels),
        after=reliability(held_out[method], labels),
        auc=auc(probabilities, labels),
        roc=roc(probabilities, labels),
        operating_points=tuple(operating_point(whole, labels, aim) for aim in SENSITIVITIES) if enough else (),
        missing="" if enough else f"operating points need {LEAST_POSITIVES} positives, there are {positives}",
    )


def _not_to_fit(n: int, positives: int, folds: int) -> str:
    if n == 0:
        return "no held-out study has a label"
    if positives in (0, n):
        return f"all labels are {min(positives, 1)}"
    return "all studies are of one fold: nothing to cross-fit" if folds == 1 else ""


def cross_fitted(method: Method, given: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n,) calibrated logits of each fold, fitted on the others."""
    found = np.empty_like(given)
    for fold in np.unique(folds):
        own = folds == fold
        slope, intercept = fit(method, given[~own], labels[~own])
        found[own] = slope * given[own] + intercept
    return found


def fit(method: Method, given: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(n,) logits and labels -> (slope, intercept) with the lowest log loss, slope >= 0.

    The targets are Platt's (1999), (positives + 1) / (positives + 2) and 1 / (negatives + 2), which keep both finite where
    the values part the labels without error, or there is one kind of label only.
    """
    if method == "identity":
        return 1.0, 0.0
    from scipy.optimize import minimize  # a third of a second

    positives = labels.sum()
    targets = np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        moved = parameters[0] * given + parameters[1]
        softplus = np.logaddexp(0, moved)
        wrong = np.exp(moved - softplus) - targets
        return float((softplus - targets * moved).mean()), np.array([(wrong * given).mean(), wrong.mean()])

    bounds = [(0, None), (None, None) if method == "platt" else (0, 0)]
    options = {"ftol": 1e-15, "gtol": 1e-9}
    slope, intercept = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return float(slope), float(intercept)


def logits(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.asarray(probabilities, np.float64).clip(CLIP, 1 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(given: np.ndarray) -> np.ndarray:
    """Without overflow, and within [CLIP, 1 - CLIP]."""
    with np.errstate(invalid="ignore"):  # NaN stays
        return np.exp(-np.logaddexp(0, -given)).clip(CLIP, 1 - CLIP)


def render(calibration: Calibration) -> str:
    """A text table, one target a line, with a legend."""
    rows: list[tuple[str, ...]] = []
    for name, target in calibration.targets.items():
        known = (name, str(target.n), str(target.positives))
        if target.before is None or target.after is None:
            rows.append((*known, "none", *[""] * 6, target.missing))
            continue
        losses = [f"{one.log_loss:.4f}" for one in (target.before, target.after)]
        before, after = target.before.ece, target.after.ece
        errors = (
            f"{before.value:.3f}",
            f"{after.value:.3f}",
            f"{after.low:.3f} - {after.high:.3f}",
            f"{after.chance:.3f}",
        )
        rows.append((*known, str(target.method), *losses, *errors, target.missing))
    columns = [
        "target",
        ">n",
        ">positives",
        "calibration",
        ">log loss",
        ">after",
        ">ECE",
        ">after",
        ">95 %",
        ">by chance",
        "",
    ]
    legend = (
        "ECE: expected calibration error; by chance: that of a perfect calibration with so many studies. "
        "after: each study calibrated without its fold."
    )
    return "\n".join([*table_lines(columns, rows), legend])
