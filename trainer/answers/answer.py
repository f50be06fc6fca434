"""The answer of the models for one study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from cache_schema import StudyRecord
from cache_schema.study import Box


class Flag(NamedTuple):
    """Something that a reader of the answer should know."""

    reason: str
    """one of `trainer.answers.flags.REASONS`"""
    message: str
    """one sentence for the report"""
    level: str = ""
    """C1..C7, if it concerns one level"""

    @property
    def sentence(self) -> str:
        return f"{self.level}: {self.message}" if self.level else self.message

    @property
    def code(self) -> str:
        """As in predictions.csv: the reason and, where it concerns one, the level."""
        return f"{self.reason}:{self.level}" if self.level else self.reason


class SuspectedSlice(NamedTuple):
    """The slice most likely to show a fracture of a level, by the slice models."""

    level: str
    z_index: int
    slice_number: int
    """as in the source: the file name in the RSNA layout, InstanceNumber elsewhere"""
    fracture: float
    """in [0, 1]: the mean over the slice models"""


@dataclass(frozen=True)
class Answer:
    """What the models say of one study. Boxes are in native pixels and z_index, with exclusive ends."""

    record: StudyRecord
    z: np.ndarray
    """(slices,) float64, mm along the slice normal, head to feet"""
    outputs: Mapping[str, float]
    """patient_overall, C1..C7 -> the mean of the study models' probabilities: the competition's values"""
    box: Box
    z_range: tuple[int, int]
    box_source: str
    """model; or full_frame, where no box was found"""
    models: Mapping[str, tuple[str, ...]]
    """stage -> names of the runs that answered"""
    calibrated: Mapping[str, float] | None = None
    """target -> calibrated probability; None where the models have no calibration"""
    curves: pd.DataFrame | None = None
    """z_index, C1..C7 (ratios), C1_frac..C7_frac, any_frac: the mean over the slice models, one row per triplet's middle slice;
    None without slice models"""
    slices: tuple[SuspectedSlice, ...] = ()
    """one per level, C1 to C7; empty without slice models"""
    flags: tuple[Flag, ...] = ()
    outside: Mapping[str, str] = field(default_factory=dict)
    """levels outside the field of view -> the reason; they get no probability"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """decode, boxes, slices, study -> seconds spent on this study"""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def probabilities(self) -> dict[str, float | None]:
        """As `outputs`; None for a level outside the field of view."""
        return {target: None if target in self.outside else value for target, value in self.outputs.items()}

    @property
    def shown_calibrated(self) -> dict[str, float]:
        """As `calibrated`, without levels outside the field of view."""
        return {target: value for target, value in (self.calibrated or {}).items() if target not in self.outside}
