"""Exposure: whose label or segmentation a run or a row of a table has seen, and how, kept as groups with the same way.

A group says that each of its rows has seen each of its studies. All studies that one run trained on are one group, however
many rows of a table the run predicted: what a run has seen is kept once, not once for each pair of a row and a study.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pandas as pd

ROW, STUDY = "<row>", "<study>"
"""stand for the name of the row and of the study in a way; ROW among a group's studies is each row's own study"""
ARROW = " <- "
LABEL, SEGMENTATION, UNKNOWN = "label", "segmentation", "unknown"
WEIGHTS = ""
COLUMNS = ["rows", "studies", "kind", "steps", "way"]
"""of an exposure file: a group a line, with rows and studies sorted and joined by spaces"""
PAIR_COLUMNS = ["row", "study", "kind", "steps", "way"]
"""of the pairs, and of exposure files of earlier versions"""


class Pair(NamedTuple):
    """One row that has seen one study."""

    row: str
    study: str
    kind: str
    steps: int
    way: str


class Group(NamedTuple):
    rows: frozenset[str]
    """studies whose rows of a table, or of a run's predictions, have seen; WEIGHTS for a run's weights"""
    studies: frozenset[str]
    """whose label or segmentation has been seen"""
    kind: str
    """label, segmentation, or unknown for an input without an exposure file (its only study is then "")"""
    steps: int
    """the number of artefacts in between: 0 if the run trained on it, or the row was computed from it"""
    way: str
    """these artefacts, from this one back to the one that used it, joined by ARROW"""

    @property
    def of_weights(self) -> bool:
        return WEIGHTS in self.rows

    @property
    def comparable(self) -> tuple[str, str]:
        """Of groups with the same value only the shorter way to a study counts. Unknown inputs count each for itself."""
        return self.kind, self.way.split(ARROW)[-1] if self.kind == UNKNOWN else ""

    def studies_of(self, row: str) -> frozenset[str]:
        return self.studies - {ROW} | {row} if ROW in self.studies else self.studies

    def way_of(self, row: str, study: str) -> str:
        return self.way.replace(f" row {ROW}", f" row {row}").replace(f" row {STUDY}", f" row {study}")

    def pair(self, row: str, study: str) -> Pair:
        return Pair(row, study, self.kind, self.steps, self.way_of(row, study))


Exposure = tuple[Group, ...]
"""Groups in a fixed order, as `normal` gives them. A study may be in several groups of a row: the shortest way counts, of
several as short the first by its letters."""


def normal(groups: Iterable[Group]) -> Exposure:
    """The same exposure without ways to a study to which there is a shorter one."""
    own: list[Group] = []
    others: list[Group] = []
    for group in groups:
        (own if group.of_weights else others).append(group)
    kept = [*_joined(_shortest(own)), *_joined(_without_longer(_joined(others)))]
    return tuple(sorted(kept, key=_place))


def pairs_of(exposure: Iterable[Group]) -> Iterator[Pair]:
    """Each row and study with the shortest way; unknown inputs each for itself. In order. Millions for a table of many rows."""
    found: dict[tuple[str, ...], Pair] = {}
    for group in exposure:
        for row in group.rows:
            for study in group.studies_of(row):
                pair, key = group.pair(row, study), (row, study, *group.comparable)
                if key not in found or pair < found[key]:
                    found[key] = pair
    yield from sorted(found.values())


def pair_frame(exposure: Iterable[Group]) -> pd.DataFrame:
    """The pairs as a frame with PAIR_COLUMNS."""
    return _typed(pd.DataFrame(pairs_of(exposure), columns=PAIR_COLUMNS))


def to_table(exposure: Exposure) -> pd.DataFrame:
    """The content of an exposure file."""
    lines = [(*map(_text, group[:2]), *group[2:]) for group in exposure]
    return _typed(pd.DataFrame(lines, columns=COLUMNS))


def from_table(table: pd.DataFrame) -> Exposure:
    """From the content of an exposure file, of this version or of earlier ones with a line for each pair."""
    if "study" in table.columns:
        return _from_pairs(Pair(*line) for line in table[PAIR_COLUMNS].itertuples(index=False))
    sets = {text: frozenset(text.split(" ")) for name in ("rows", "studies") for text in table[name].unique()}
    lines = table[COLUMNS].itertuples(index=False)
    return tuple(Group(sets[rows], sets[studies], *rest) for rows, studies, *rest in lines)


def _from_pairs(pairs: Iterable[Pair]) -> Exposure:
    by_row: dict[str, dict[tuple[str, int, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, study, kind, steps, way in pairs:
        by_row[row][kind, steps, _general(way, row, study)].add(study)
    groups = []
    for row, ways in by_row.items():
        for key, studies in ways.items():
            groups.append(Group(frozenset({row}), frozenset({ROW} if studies == {row} and row else studies), *key))
    return normal(groups)


def _general(way: str, row: str, study: str) -> str:
    """The way with ROW and STUDY in place of these two."""
    parts = way.split(ARROW)
    of_row = 0
    while row and of_row < len(parts) and parts[of_row].endswith(f" row {row}"):
        parts[of_row] = parts[of_row].removesuffix(row) + ROW
        of_row += 1
    for place in range(of_row, len(parts)):
        if study and parts[place].endswith(f" row {study}"):
            parts[place] = parts[place].removesuffix(study) + STUDY
    return ARROW.join(parts)


def _joined(groups: Iterable[Group]) -> list[Group]:
    """Groups that differ in their studies only, then those that differ in their rows only, as one."""
    studies: dict[tuple, set[str]] = defaultdict(set)
    for group in groups:
        studies[group.rows, group.kind, group.steps, group.way] |= group.studies
    rows: dict[tuple, set[str]] = defaultdict(set)
    for (own, *rest), seen in studies.items():
        if own and seen:
            rows[frozenset(seen), *rest] |= own
    return [Group(frozenset(own), seen, *rest) for (seen, *rest), own in rows.items()]


def _shortest(groups: Iterable[Group]) -> list[Group]:
    """Of weights: each study in the one group with the shortest way to it."""
    levels: dict[tuple[str, str], dict[int, list[Group]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        levels[group.comparable][group.steps].append(group)
    found = []
    for by_steps in levels.values():
        reached: frozenset[str] = frozenset()
        for _, level in sorted(by_steps.items()):
            new = [group._replace(studies=group.studies - reached) for group in level]
            found += _first_ways(new) if len(new) > 1 else new
            reached = reached.union(*(group.studies for group in new))
    return found


def _first_ways(groups: list[Group]) -> list[Group]:
    """Each study in the one group whose way to it comes first by its letters."""
    ways: dict[str, tuple[str, str]] = {}
    for group in groups:
        for study in group.studies:
            way = group.way_of(WEIGHTS, study), group.way
            ways[study] = min(way, ways.get(study, way))
    return [
        group._replace(studies=frozenset(study for study in group.studies if ways[study][1] == group.way))
        for group in groups
    ]


def _without_longer(groups: list[Group]) -> list[Group]:
    """Of rows: without studies that another group reaches in fewer steps from all of a group's rows."""
    found = []
    for group in groups:
        studies = group.studies
        for other in groups:
            if other.steps < group.steps and other.comparable == group.comparable and other.rows >= group.rows:
                studies -= other.studies
        found.append(group._replace(studies=studies))
    return found


def _place(group: Group) -> tuple:
    return sorted(group.rows), group.kind, group.steps, group.way, sorted(group.studies)


def _text(names: frozenset[str]) -> str:
    return " ".join(sorted(names))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: "int64" if name == "steps" else "str" for name in frame.columns})
