"""What must hold on a phantom's truth. Pure functions, but for reading the truth's label volumes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from disorders import is_found, planted

from cache_schema import LEVELS, Study
from cache_schema.columns import BOX, FULL_FRAME
from cache_schema.study import Box, square_around
from trainer.answers.anatomy import check_levels
from trainer.answers.answer import Answer, Flag
from trainer.answers.flags import DISORDERS
from trainer.data.items import whole_studies
from trainer.scores.calibration import Calibration
from trainer.scores.scores import HELD_OUT, Score
from trainer.settings.stage_registry import stage_names

KEPT_AT_LEAST = 0.999
STUDY_AIM = 0.85
IN_VERTEBRA_AT_LEAST = 0.95
NEAR_MM, NEAR_AT_LEAST = 10, 0.8


class Check(NamedTuple):
    what: str
    found: str
    well: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.found}"


def beats_baselines(scores: list[Score]) -> list[Check]:
    """One for each stage: on held-out studies, with the whole 95 % bound on the right side."""
    own = {score.stage: score for score in scores if score.split == HELD_OUT and score.target is None}
    found = [
        Check(f"{stage} beats its baseline", "no held-out score", False) for stage in stage_names() if stage not in own
    ]
    for score in own.values():
        well = score.low > 1 if score.higher_is_better else score.high < 1
        aim = f", aim {STUDY_AIM}" if score.stage == "study_fracture" else ""
        bound = f"{score.ratio:.3f} ({score.low:.3f} - {score.high:.3f}){aim}"
        found.append(Check(f"{score.stage} beats the {score.baseline}", f"{score.metric} ratio {bound}", well))
    return found


def boxes_keep_the_neck(boxes: pd.DataFrame, truth: Path, index: pd.DataFrame) -> Check:
    """The share of C1..C7 voxels inside each study's box and the triplets of its z-range; also inside what stage 4 is shown.

    boxes: study_boxes, out of fold. index: id, rows, columns, slices.
    """
    known, inside, shown, worst = index.set_index("id"), 0, 0, (1.0, "")
    total = 0
    for row in boxes.itertuples():
        labels = _labels(truth, row.id)
        neck = (labels > 0) & (labels <= len(LEVELS))
        box: Box = tuple(getattr(row, name) for name in BOX)
        # z_from and z_to name middle slices: their triplets reach one slice further
        kept = _count(neck, box, max(0, row.z_from - 1), row.z_to + 1)
        study = known.loc[row.id]
        (item,) = whole_studies([(row.id, study["slices"])], {row.id: (row.z_from, row.z_to)})
        square = square_around(box, study["rows"], study["columns"])
        shown += _count(neck, square, item.start, item.start + item.frames)
        inside, total = inside + kept, total + int(neck.sum())
        worst = min(worst, (kept / max(1, int(neck.sum())), row.id))
    share = inside / total
    found = f"{share:.3%} of voxels, {shown / total:.3%} in what stage 4 is shown; least {worst[0]:.3%} in {worst[1]}"
    return Check(f"study boxes and z-range keep at least {KEPT_AT_LEAST:.1%} of C1..C7", found, share >= KEPT_AT_LEAST)


def levels_are_found(ratios: pd.DataFrame, truth: Path) -> Check:
    """Among slices that show any of C1..C7: how often the level with the highest predicted ratio has the highest true one.

    ratios: vertebra_ratios, out of fold.
    """
    right = shown = 0
    for id, rows in ratios.groupby("id"):
        true = true_ratios(_labels(truth, id))[rows["z_index"]]
        there = true.max(axis=1) > 0
        guess = rows[list(LEVELS)].to_numpy()[there].argmax(axis=1)
        right += int((guess == true[there].argmax(axis=1)).sum())
        shown += int(there.sum())
    return Check(
        "the level with the highest ratio is right in most slices", f"{right / shown:.1%} of {shown}", 2 * right > shown
    )


def named_slices_lie_in_the_vertebra(where: pd.DataFrame, labels: pd.DataFrame, truth: Path) -> Check:
    """Among fractured levels: how often the slice that stage 3 points at shows the level.

    where: suspected_slices, out of fold. labels: id, C1..C7.
    """
    broken, right, shown = labels.set_index("id")[list(LEVELS)] == 1, 0, 0
    for id, rows in where.groupby("id"):
        true = true_ratios(_labels(truth, id))
        for row in rows.itertuples():
            if broken.at[id, row.level]:
                right += int(true[row.z_index, LEVELS.index(row.level)] > 0)
                shown += 1
    return Check(
        f"the named slice lies in the fractured vertebra in at least {IN_VERTEBRA_AT_LEAST:.0%}",
        f"{right} of {shown}",
        right >= IN_VERTEBRA_AT_LEAST * shown,
    )


def heat_maps_point_at_the_fracture(peaks: pd.DataFrame, truth: Path) -> Iterator[Check]:
    """How often a fractured level's heat map has its peak near the fracture, on its level; and two controls that must not.

    peaks: id, level, z_index, x, y (native pixels, pixel i covers [i, i + 1)), made_by: `heat map`, `random points` or
    `shuffled weights`.
    """
    for made_by, own in peaks.groupby("made_by"):
        near = [
            is_near_the_fracture(row, json.loads((truth / f"{row.id}.json").read_text())) for row in own.itertuples()
        ]
        share = float(np.mean(near))
        found, within = f"{share:.1%} of {len(near)}", f"within {NEAR_MM} mm of the fracture"
        if made_by == "heat map":
            yield Check(
                f"peaks of heat maps lie {within} in at least {NEAR_AT_LEAST:.0%}", found, share >= NEAR_AT_LEAST
            )
        else:
            well = share < NEAR_AT_LEAST / 2
            yield Check(f"control, {made_by}: {within} in less than {NEAR_AT_LEAST / 2:.0%}", found, well)


def is_near_the_fracture(peak: Any, described: dict) -> bool:
    """Whether a peak lies on a slice of its level, and near the level's fracture plane. described: preprocess.phantom.truth."""
    level, pixel = described["levels"][peak.level], described["pixel_mm"]
    if not level["z_from"] <= peak.z_index < level["z_to"]:
        return False
    first_x, first_y = described["first_pixel_mm"]
    at = np.array([first_x + (peak.x - 0.5) * pixel, first_y + (peak.y - 0.5) * pixel, described["z_mm"][peak.z_index]])
    normal = np.array(level["fracture"]["normal"])
    away = abs(normal @ (at - level["fracture"]["point_mm"])) / np.linalg.norm(normal)
    return bool(away <= NEAR_MM)


def true_ratios(labels: np.ndarray) -> np.ndarray:
    """(slices, rows, columns) labels -> (slices, 7): area of C1..C7 over its largest (reference 3.4)."""
    area = np.stack([(labels == level).sum(axis=(1, 2)) for level in range(1, len(LEVELS) + 1)], axis=1)
    return area / np.maximum(area.max(axis=0), 1)


def permuted_labels_teach_nothing(scores: list[Score]) -> Check:
    """Stage 4 on shuffled labels: the 95 % bound of its ratio must not lie below 1 as a whole."""
    (score,) = [row for row in scores if row.stage == "study_fracture" and row.split == HELD_OUT and row.target is None]
    bound = f"ratio {score.ratio:.3f} ({score.low:.3f} - {score.high:.3f}) on {score.n} studies"
    return Check("shuffled labels teach stage 4 nothing", bound, score.high >= 1)


def twins_rank(predictions: pd.DataFrame, twins: pd.DataFrame) -> Check:
    """In most pairs the fractured twin has the higher probability at its fractured level.

    predictions: id, patient_overall, C1..C7. twins: whole, broken (ids), level.
    """
    by_id = predictions.set_index("id")
    level = [by_id.at[pair.broken, pair.level] - by_id.at[pair.whole, pair.level] for pair in twins.itertuples()]
    overall = by_id.loc[twins["broken"], "patient_overall"].array - by_id.loc[twins["whole"], "patient_overall"].array
    higher, higher_overall = int((np.array(level) > 0).sum()), int((np.array(overall) > 0).sum())
    found = (
        f"{higher} of {len(twins)} at its level (median difference {np.median(level):.3f}), {higher_overall} overall"
    )
    return Check("of twins the fractured one scores higher", found, 2 * higher > len(twins))


def _labels(truth: Path, id: str) -> np.ndarray:
    """(slices, rows, columns) uint8, head to feet; 1..7 = C1..C7."""
    with np.load(truth / f"{id}.npz") as file:
        return file["labels"]


def _count(neck: np.ndarray, box: Box, z_from: int, z_to: int) -> int:
    x0, y0, x1, y1 = box
    return int(neck[z_from:z_to, y0:y1, x0:x1].sum())


def levels_raise_no_alarm(curves: Mapping[str, pd.DataFrame], studies: Mapping[str, Study]) -> Check:
    """No sound study is flagged for its levels' order, or for a level that is missing, doubled or far from the next.

    curves: id -> z_index, C1..C7, out of fold. studies: by id.
    """
    alarms = [f"{id}: {flag.message}" for id, own in curves.items() for flag in _alarms(own, studies[id])]
    found = f"{len(alarms)} alarms on {len(curves)} studies" + (f", first {alarms[0]}" if alarms else "")
    return Check("the levels of sound studies raise no alarm", found, not alarms)


def _alarms(curves: pd.DataFrame, study: Study) -> list[Flag]:
    return [flag for flag in _levels(curves, study.z)[0] if flag.reason in DISORDERS]


def disorders_are_found(
    curves: Mapping[str, pd.DataFrame], studies: Mapping[str, Study], count: int = 200, seed: int = 0
) -> Check:
    """Levels swapped, missing or doubled, and cut fields of view, planted in sound curves: all are named."""
    z = {id: study.z for id, study in studies.items()}
    found = missed = 0
    first = ""
    for plant in planted(curves, z, count, seed):
        flags, outside = _levels(plant.curves, plant.z)
        if is_found(plant, flags, outside):
            found += 1
        else:
            missed, first = missed + 1, first or f", first {plant.kind} {' '.join(plant.levels)}"
    return Check("planted disorders of the levels are found", f"{found} of {found + missed}{first}", not missed)


def _levels(curves: pd.DataFrame, z: np.ndarray) -> tuple[tuple[Flag, ...], dict[str, str]]:
    return check_levels(curves, z, (0, len(z)), FULL_FRAME)


def calibration_is_no_worse(calibration: Calibration) -> Check:
    """Of each target the cross-fitted log loss, before and after."""
    losses = {
        name: (target.before.log_loss, target.after.log_loss)
        for name, target in calibration.usable.items()
        if target.before is not None and target.after is not None
    }
    found = ", ".join(f"{name} {before:.4f} to {after:.4f}" for name, (before, after) in losses.items())
    well = bool(losses) and all(after <= before for before, after in losses.values())
    return Check("log loss is not worse after calibration", found or "no target has a calibration", well)


def a_head_is_not_taken_for_a_neck(answer: Answer) -> Check:
    """A scan of a head, on whose slices there is no level below C2."""
    flags = {flag.reason for flag in answer.flags}
    numbers = [level for level in LEVELS[2:] if answer.probabilities[level] is not None]
    found = f"flags {' '.join(sorted(flags)) or 'none'}; numbers for {' '.join(numbers) or 'no level of C3 to C7'}"
    return Check(
        "a real head is unlike training and has no numbers below C2", found, "unlike_training" in flags and not numbers
    )
