"""Which files make which study, in which order and orientation, and every reason to refuse one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache_schema.errors import StudyRefused
from cache_schema.layout import is_valid_id
from preprocess.findings import REASONS, Finding, Severity
from preprocess.flags import DICOM_UID, SAME_SPACING, study_flags
from preprocess.geometry import (
    MAX_DEGREES_FROM_AXIAL,
    canonical_grid,
    degrees_from_axial,
    slice_normal,
    turn_to_canonical,
    unit_directions,
)
from preprocess.header import FileHeader
from preprocess.inventory import RSNA_FOLDER, natural_key, scan
from preprocess.stacks import SAME_POSITION, Stack, choose_stack, is_localizer, split_into_stacks, why_left_out
from preprocess.study_plan import SlicePlan, StudyPlan

SAME_ORIENTATION = 1e-3
NO_WORDS = re.compile(r"[0-9.]{1,64}")
"""A series' UID goes into the record as it is; one with letters in it may hold a name, and nothing depends on it."""


def plan_studies(source: str | Path) -> tuple[list[StudyPlan], list[Finding]]:
    """Plans of all studies under `source`, sorted by id, and everything there is to say about its files, sorted.

    Raises UsageError when `source` does not exist; whatever its files hold becomes a finding.
    """
    return judge(*scan(source))


def judge(headers: Iterable[FileHeader], unread: Iterable[Finding] = ()) -> tuple[list[StudyPlan], list[Finding]]:
    """The decisions of `plan_studies` on headers already read."""
    studies: dict[str, list[FileHeader]] = {}
    unread = list(unread)
    for header in headers:
        if header.study_uid:
            studies.setdefault(header.study_uid, []).append(header)
        else:
            unread.append(
                Finding(
                    "", str(header.number), "refused", "unreadable_header", "StudyInstanceUID is absent", header.path
                )
            )
    in_folder: dict[Path, set[str]] = {}
    for uid, members in studies.items():
        for header in members:
            in_folder.setdefault(Path(header.path).parent, set()).add(uid)
    beside: dict[str, list[Finding]] = {}
    findings = []
    for finding in unread:
        folder = Path(finding.path).parent
        owners = in_folder.get(folder, set())
        if len(owners) == 1:
            beside.setdefault(next(iter(owners)), []).append(finding)
        elif not owners and folder.parent.name == RSNA_FOLDER and DICOM_UID.fullmatch(folder.name):
            beside.setdefault(folder.name, []).append(finding)
        else:
            findings.append(finding)
    plans = []
    for uid in sorted(studies.keys() | beside.keys()):
        judged = _StudyJudge(uid, studies.get(uid, []), beside.get(uid, []))
        plan = judged.plan()
        findings.extend(judged.findings)
        if plan is not None:
            plans.append(plan)
    return plans, sorted(set(findings), key=lambda f: (f.id, natural_key(f.file), f))


class _StudyJudge:
    """Decides about one study, collecting its findings on the way."""

    def __init__(self, uid: str, headers: Sequence[FileHeader], unread: Sequence[Finding]):
        self.uid = uid
        self.id = uid if is_valid_id(uid) else ""
        paths = {h.path for h in headers} | {f.path for f in unread}
        self.number = {path: n for n, path in enumerate(sorted(paths, key=natural_key), start=1)}
        self.headers = sorted(headers, key=lambda h: (self.number[h.path], h.frame))
        self.findings = [replace(f, id=self.id, file=str(self.number[f.path])) if self.id else f for f in unread]
        self.has_unread = bool(unread)

    def plan(self) -> StudyPlan | None:
        try:
            return self._plan()
        except StudyRefused as refused:
            self.say("refused", refused.reason, refused.what)
        except _Refused:
            pass
        return None

    def say(self, severity: Severity, reason: str, message: str, header: FileHeader | None = None) -> None:
        file, path = ("", "") if header is None else (str(self.number[header.path]), header.path)
        self.findings.append(Finding(self.id, file, severity, reason, message, path))

    def refuse(self, reason: str, message: str) -> StudyRefused:
        return StudyRefused(reason, message, study=self.id)

    def refuse_tilt(self, degrees: float) -> StudyRefused:
        limit = f"{MAX_DEGREES_FROM_AXIAL:.0f} at most"
        return self.refuse("not_axial", f"the slices are {degrees:.0f} degrees from axial, {limit}")

    def _plan(self) -> StudyPlan:
        if not self.id:  # the number of its first file in the whole source is all that may be told
            first = min(self.headers, key=lambda header: header.number)
            self.number[first.path] = first.number
            self.say("refused", "invalid_id", REASONS["invalid_id"], first)
            raise _Refused
        if not self.headers:
            raise self.refuse("no_readable_file", REASONS["no_readable_file"])
        headers = self.without_damage(self.choose().headers)
        headers = self.without_copies(headers)
        first = headers[0]
        self.check_alike(headers)
        row, column = unit_directions(first.orientation)
        places = np.array([h.position for h in headers]) @ slice_normal(row, column)
        headers, places = self.without_repeated_positions(headers, places)
        numbers, numbered = self.slice_numbers(headers)
        order = np.argsort(-places, kind="stable")
        turn = turn_to_canonical(row, column)
        positions = np.array([headers[i].position for i in order])
        plan = StudyPlan(
            id=self.id,
            study_uid=self.uid,
            series_uid=first.series_uid if NO_WORDS.fullmatch(first.series_uid) else "",
            slices=tuple(
                SlicePlan(headers[i], float(places[i]), numbers[i], self.number[headers[i].path]) for i in order
            ),
            turn=turn,
            grid=canonical_grid(turn, first.rows, first.columns, positions, row, column, first.pixel_spacing),
            flags=(),
        )
        flags = dict(study_flags(plan))
        if self.has_unread:
            flags["unread_files"] = REASONS["unread_files"]
        if not numbered:
            flags["no_slice_number"] = REASONS["no_slice_number"]
        for flag, message in flags.items():
            self.say("flagged", flag, message)
        return replace(plan, flags=tuple(sorted(flags)))

    def choose(self) -> Stack:
        """The stack to keep; the others are listed. Files too damaged to name a series count as the chosen one's."""
        whole = [h for h in self.headers if h.series_uid or not h.problems]
        stacks = []
        for stack in split_into_stacks(whole):
            first = stack.headers[0]
            if first.modality not in ("", "CT"):
                self.say("flagged", "not_ct", f"{len(stack.headers)} objects of another modality", first)
            elif is_localizer(first):
                self.say("flagged", "series_left_out", f"{len(stack.headers)} images: a localizer", first)
            else:
                stacks.append(stack)
        chosen = choose_stack(stacks)
        if chosen is None:
            damaged = [h for h in self.headers if h.problems]
            if damaged:
                self.say_damage(damaged)
                raise _Refused
            if stacks:
                degrees = min(degrees_from_axial(h.orientation) for stack in stacks for h in stack.headers)
                raise self.refuse_tilt(degrees)
            raise self.refuse("no_axial_series", REASONS["no_axial_series"])
        for stack in stacks:
            if stack is not chosen:
                message = f"{len(stack.headers)} images: {why_left_out(stack, chosen)}"
                self.say("flagged", "series_left_out", message, stack.headers[0])
        strays = [h for h in self.headers if h.problems and not h.series_uid]
        return Stack((*chosen.headers, *strays))

    def say_damage(self, headers: Iterable[FileHeader]) -> None:
        seen = set()
        for header in headers:
            for reason, message in header.problems:
                if (header.path, reason, message) not in seen:
                    seen.add((header.path, reason, message))
                    self.say("refused", reason, message, header)

    def without_damage(self, headers: Sequence[FileHeader]) -> list[FileHeader]:
        """The headers, unless one of them cannot be used: a study is whole or absent."""
        judged = []
        for header in headers:
            if not header.problems and unit_directions(header.orientation) is None:
                header = header.with_problem("invalid_orientation", REASONS["invalid_orientation"])
            judged.append(header)
        damaged = [h for h in judged if h.problems]
        if damaged:
            self.say_damage(damaged)
            raise _Refused
        return judged

    def without_copies(self, headers: Sequence[FileHeader]) -> list[FileHeader]:
        """Each (SOP UID, frame, position) once: the first in file order stays."""
        kept: dict = {}
        for header in headers:
            key = (header.sop_uid or header.path, header.frame, header.position)
            if key in kept:
                self.say("repaired", "repeated_file", f"a copy of file {self.number[kept[key].path]}", header)
            else:
                kept[key] = header
        return list(kept.values())

    def check_alike(self, headers: Sequence[FileHeader]) -> None:
        first = headers[0]
        orientations = np.array([h.orientation for h in headers])
        away = np.abs(orientations - orientations[0]).max(axis=1) > SAME_ORIENTATION
        if away.any():
            message = f"{away.sum()} of {len(headers)} slices are oriented otherwise than the first"
            raise self.refuse("mixed_orientation", message)
        degrees = degrees_from_axial(first.orientation)
        if degrees > MAX_DEGREES_FROM_AXIAL:
            raise self.refuse_tilt(degrees)
        sizes = {(h.rows, h.columns) for h in headers}
        if len(sizes) > 1:
            raise self.refuse("mixed_size", f"sizes {', '.join(f'{r} x {c}' for r, c in sorted(sizes))} in one series")
        spacings = np.array([h.pixel_spacing for h in headers])
        if np.abs(spacings / spacings[0] - 1).max() > SAME_SPACING:
            message = f"pixel spacing from {spacings.min():g} to {spacings.max():g} mm in one series"
            raise self.refuse("mixed_pixel_spacing", message)

    def without_repeated_positions(
        self, headers: Sequence[FileHeader], places: np.ndarray
    ) -> tuple[list[FileHeader], np.ndarray]:
        """One slice per position: of several, the first in file order stays."""
        kept: list[int] = []
        last = None
        for i in np.argsort(places, kind="stable"):
            if last is not None and places[i] - places[last] < SAME_POSITION:
                drop, last = max(i, last), min(i, last)
                kept[-1] = last
                message = f"at the place of file {self.number[headers[last].path]}"
                self.say("repaired", "repeated_position", message, headers[drop])
            else:
                kept.append(i)
                last = i
        kept.sort()
        return [headers[i] for i in kept], places[kept]

    def slice_numbers(self, headers: Sequence[FileHeader]) -> tuple[list[int], bool]:
        """The integer file names in the RSNA layout, else InstanceNumber; where both fail, file order and False."""
        for numbers in ([h.number_in_name for h in headers], [h.instance_number for h in headers]):
            if None not in numbers and len(set(numbers)) == len(numbers):
                return numbers, True
        return list(range(1, len(headers) + 1)), False


class _Refused(Exception):
    """The study is refused, and what there is to say is said."""
