"""Plans one study: which images are its volume, in which order and orientation, or why it is refused."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from cache_schema.errors import StudyRefused
from cache_schema.layout import is_valid_id
from preprocess.decoders import LOSSY_SYNTAXES
from preprocess.findings import REASONS, Finding, Severity
from preprocess.headers.file_header import FileHeader, known
from preprocess.natural_order import natural_key
from preprocess.series.drift import shear_and_jump
from preprocess.series.duplicates import Likeness, missing_copies, without_copies
from preprocess.series.flags import SAME_SPACING, study_flags
from preprocess.series.geometry import (
    MAX_DEGREES_FROM_AXIAL,
    canonical_grid,
    degrees_from_axial,
    slice_normal,
    turn_to_canonical,
    unit_directions,
)
from preprocess.series.interleaving import SAME_POSITION
from preprocess.series.mixed_patients import has_odd_patient_ids, has_two_patients
from preprocess.series.stacks import (
    Stack,
    choose_stack,
    each_has_its_own_series,
    is_localizer,
    split_into_groups,
    stacks_of,
    why_left_out,
)
from preprocess.series.study_plan import SlicePlan, StudyPlan

SAME_ORIENTATION = 1e-3
NO_WORDS = re.compile(r"[0-9.]{1,64}")
"""A series' UID goes into the record as it is; one with letters in it may hold a name, and nothing depends on it."""


class StudyPlanner:
    """Plans one study and collects its findings."""

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
        return self.refuse(
            "not_axial", f"the slices are {degrees:.0f} degrees from axial; the limit is {MAX_DEGREES_FROM_AXIAL:.0f}"
        )

    def _plan(self) -> StudyPlan:
        if not self.id:  # the number of its first file in the whole source is all that may be told
            first = min(self.headers, key=lambda header: header.number)
            self.number[first.path] = first.number
            self.say("refused", "invalid_id", REASONS["invalid_id"], first)
            raise _Refused
        if not self.headers:
            raise self.refuse("no_readable_file", REASONS["no_readable_file"])
        stack = self.choose()
        if stack.mixed:
            raise self.refuse(*stack.mixed)
        places = self.places_of(stack.headers)
        first = places[0][0]
        row, column = known(unit_directions(known(first.orientation)))
        along = np.array([members[0].position for members in places]) @ slice_normal(row, column)
        shear, jump = self.check_grid([members[0] for members in places], along)
        turn = turn_to_canonical(row, column)
        positions = np.array([members[0].position for members in places])[::-1]
        slices, numbered = self.number_slices(places, along)
        plan = StudyPlan(
            id=self.id,
            study_uid=self.uid,
            series_uid=self.series_uid(stack),
            slices=slices,
            turn=turn,
            grid=canonical_grid(turn, first.rows, first.columns, positions, row, column, known(first.pixel_spacing)),
            flags=(),
        )
        flags = dict(study_flags(plan))
        if shear:
            flags["shear"] = f"the first pixels of the slices lie on a line {shear:.1f} degrees from the slice normal"
        if jump:
            flags["origin_jump"] = f"the first pixels of the slices deviate from a straight line by {jump:.1f} mm"
        if self.has_unread:
            flags["unread_files"] = REASONS["unread_files"]
        if not numbered:
            flags["no_slice_number"] = REASONS["no_slice_number"]
        for flag, message in flags.items():
            self.say("flagged", flag, message)
        return replace(plan, flags=tuple(sorted(flags)))

    def series_uid(self, stack: Stack) -> str:
        """What the record may say: nothing where images have UIDs of their own, or where there are words in it."""
        uids = {h.series_uid for h in stack.headers}
        return stack.series_uid if len(uids) == 1 and NO_WORDS.fullmatch(stack.series_uid) else ""

    def choose(self) -> Stack:
        """The stack to keep; the others are listed. Files too damaged to name a series count as the chosen one's."""
        strays = [h for h in self.headers if h.problems and not h.series_uid and h.modality in ("", "CT")]
        whole = [h for h in self.headers if not any(h is stray for stray in strays)]
        by_series = not each_has_its_own_series(whole)
        if not by_series:
            self.say("flagged", "series_uid_of_each", REASONS["series_uid_of_each"])
        groups, copies = [], []
        for group in split_into_groups(whole, by_series=by_series):
            first = group[0]
            if first.modality not in ("", "CT"):
                self.say("flagged", "not_ct", f"{len(group)} objects of another modality", first)
            elif is_localizer(first):
                self.say("flagged", "series_left_out", f"{len(group)} images: a localizer", first)
            else:
                unique, more = without_copies(group)
                groups.append(unique)
                copies += more
        self.check_patients([*(header for group in groups for header in group), *copies])
        stacks = [stack for group in groups for stack in stacks_of(group)]
        chosen = choose_stack([stack for stack in stacks if stack.is_hu]) or choose_stack(stacks)
        if chosen is None:
            self.say_why_none(stacks)
        for stack in stacks:
            if stack is not chosen:
                why = why_left_out(stack, chosen) if stack.is_hu else "its values are not Hounsfield units"
                self.say("flagged", "series_left_out", f"{len(stack.headers)} images: {why}", stack.headers[0])
        own = missing_copies(chosen.headers, copies)
        copies = [h for h in copies if not any(h is header for header in own)]
        chosen = replace(chosen, headers=(*chosen.headers, *own))
        if copies:
            message = f"{len(copies)} exact copies of other images: {self.names(copies)}"
            self.say("repaired", "repeated_file", message, copies[0])
        if copies and len(chosen.headers) + len(strays) == 1:
            raise self.refuse("too_many_repeats", f"{len(copies) + 1} files are copies of a single image")
        return replace(chosen, headers=(*chosen.headers, *strays))

    def check_patients(self, headers: Sequence[FileHeader]) -> None:
        if has_two_patients(headers):
            raise self.refuse("two_patients", REASONS["two_patients"])
        if has_odd_patient_ids(headers):
            self.say("flagged", "patient_ids_differ", REASONS["patient_ids_differ"])

    def say_why_none(self, stacks: Sequence[Stack]) -> NoReturn:
        damaged = [h for h in self.headers if h.problems and h.modality in ("", "CT")]
        if damaged:
            self.say_damage(damaged)
            raise _Refused
        if stacks:
            raise self.refuse_tilt(min(degrees_from_axial(h.orientation) for stack in stacks for h in stack.headers))
        raise self.refuse("no_axial_series", REASONS["no_axial_series"])

    def names(self, headers: Iterable[FileHeader]) -> str:
        numbers = sorted({self.number[h.path] for h in headers})
        return ("file " if len(numbers) == 1 else "files ") + ", ".join(map(str, numbers))

    def say_damage(self, headers: Iterable[FileHeader]) -> None:
        seen = set()
        for header in headers:
            for reason, message in header.problems:
                if (header.path, reason, message) not in seen:
                    seen.add((header.path, reason, message))
                    self.say("refused", reason, message, header)

    def places_of(self, headers: Sequence[FileHeader]) -> list[list[FileHeader]]:
        """The images at each place, feet to head; of several the best first: one that can be used, then a lossless one,
        then one like the most others, then the first in file order.

        A study is whole or absent: a place of which no image can be used refuses it.
        """
        judged = [self.with_geometry_judged(header) for header in headers]
        placed = [h for h in judged if not h.lacks_geometry]
        if len(placed) < len(judged):
            self.say_damage(h for h in judged if h.lacks_geometry)
            raise _Refused
        usable = next((h for h in placed if not h.problems), placed[0])
        row, column = known(unit_directions(known(usable.orientation)))
        along = np.array([h.position for h in placed]) @ slice_normal(row, column)
        places: list[list[FileHeader]] = []
        last = -np.inf
        for i in np.argsort(along, kind="stable"):
            if along[i] - last >= SAME_POSITION:
                places.append([])
                last = along[i]
            places[-1].append(placed[i])
        if len(places) < len(placed):
            likeness, order = Likeness(placed), {id(header): i for i, header in enumerate(placed)}
            for members in places:
                members.sort(
                    key=lambda h: (
                        bool(h.problems),
                        h.transfer_syntax in LOSSY_SYNTAXES,
                        likeness.common(h),
                        order[id(h)],
                    )
                )
        damaged = [members[0] for members in places if members[0].problems]
        if damaged:
            self.say_damage(damaged)
            raise _Refused
        self.check_alike([h for members in places for h in members if not h.problems])
        return places

    def with_geometry_judged(self, header: FileHeader) -> FileHeader:
        if header.orientation is not None and unit_directions(header.orientation) is None:
            return header.with_problem("invalid_orientation", REASONS["invalid_orientation"])
        return header

    def check_alike(self, headers: Sequence[FileHeader]) -> None:
        first = headers[0]
        orientations = np.array([h.orientation for h in headers])
        away = np.abs(orientations - orientations[0]).max(axis=1) > SAME_ORIENTATION
        if away.any():
            message = f"{away.sum()} of {len(headers)} slices have another orientation than the first"
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

    def check_grid(self, headers: Sequence[FileHeader], along: np.ndarray) -> tuple[float, float]:
        """Degrees of shear, and mm by which first pixels leave their line; refused where one grid does not hold for all."""
        shear, jump = shear_and_jump(headers, along)
        if jump and jump > float(np.median(np.diff(along))):
            message = f"the first pixels of the slices deviate from a straight line by {jump:.1f} mm, more than one slice spacing"
            raise self.refuse("origin_jump", message)
        return shear, jump

    def number_slices(
        self, places: Sequence[Sequence[FileHeader]], along: np.ndarray
    ) -> tuple[tuple[SlicePlan, ...], bool]:
        """Slices in cache order, numbered by integer file names in the RSNA layout, else by InstanceNumber; where both
        fail by the order of their files, and False."""
        used = sorted((members[0] for members in places), key=lambda header: (self.number[header.path], header.frame))
        by_file = {id(header): number for number, header in enumerate(used, start=1)}
        for read in (lambda h: h.number_in_name, lambda h: h.instance_number, None):
            numbers = [by_file[id(m[0])] if read is None else read(m[0]) for m in places]
            if None not in numbers and len(set(numbers)) == len(numbers):
                break
        slices = []
        for members, z, number in zip(places, along.tolist(), numbers, strict=True):
            alternatives = []
            for h in members[1:]:
                own = None if read is None else read(h)
                alternatives.append(SlicePlan(h, z, number if own is None else own, self.number[h.path]))
            slices.append(SlicePlan(members[0], z, number, self.number[members[0].path], tuple(alternatives)))
        return tuple(reversed(slices)), read is not None


class _Refused(Exception):
    """The study is refused, and what there is to say is said."""
