"""Which files make which study: headers by StudyInstanceUID, and what lies beside them and cannot be read."""

import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from preprocess.findings import Finding
from preprocess.headers.inventory import Inventory, scan
from preprocess.headers.packed import PackedHeaders, pack
from preprocess.headers.source_files import RSNA_FOLDER
from preprocess.natural_order import natural_key
from preprocess.series.flags import DICOM_UID
from preprocess.series.study_plan import StudyPlan
from preprocess.series.study_planner import StudyPlanner

SALT_BYTES = 16


def plan_studies(source: str | Path) -> tuple[list[StudyPlan], list[Finding]]:
    """Plans of all studies under `source`, sorted by id, and everything there is to say about its files, sorted.

    Raises UsageError when `source` does not exist; whatever its files hold becomes a finding.
    """
    found = scan(source, secrets.token_bytes(SALT_BYTES))
    others, planning = found.about_others(), Planning(found)
    plans = [plan for plan in planning if plan is not None]
    return plans, [*others, *planning.findings]


class Unplanned(NamedTuple):
    """A study whose headers are read. beside: findings about unreadable files that lie beside its own."""

    uid: str
    headers: PackedHeaders
    beside: list[Finding]

    def planner(self) -> StudyPlanner:
        return StudyPlanner(self.uid, list(self.headers), self.beside)


class Judged(NamedTuple):
    """What came of a study's headers. plan: packed, None of a refused one."""

    id: str
    plan: bytes | None
    findings: list[Finding]


def judge(studies: Iterable[Unplanned]) -> list[Judged]:
    """Plans studies, on a worker; one study's headers are in memory at a time."""
    return [_judge(study) for study in studies]


def _judge(study: Unplanned) -> Judged:
    planner = study.planner()
    plan = planner.plan()
    return Judged(planner.id, None if plan is None else pack(plan), planner.findings)


class Planning:
    """The decisions of `plan_studies` on headers already read. Iterating it, once, gives each study's plan, None for a refused
    one, in the order of their ids, and takes its headers out of the inventory. Its findings are complete after that."""

    def __init__(self, found: Inventory):
        self._studies = found.studies
        self._findings: list[Finding] = []
        unread = list(found.unread)
        for header in self._studies.pop("", ()):
            what = "StudyInstanceUID is absent"
            unread.append(Finding("", str(header.number), "refused", "unreadable_header", what, header.path))
        self._beside = self._share_out(unread)

    def __len__(self) -> int:
        """Studies still to be planned."""
        return len(self._studies.keys() | self._beside.keys())

    def studies(self) -> Iterator[Unplanned]:
        """Takes the studies out, in the order of their ids, for someone else to plan, who hands in what was found."""
        for uid in sorted(self._studies.keys() | self._beside.keys()):
            yield Unplanned(uid, self._studies.pop(uid, PackedHeaders()), self._beside.pop(uid, []))

    def found(self, findings: Iterable[Finding]) -> None:
        self._findings.extend(findings)

    def __iter__(self) -> Iterator[StudyPlan | None]:
        for study in self.studies():
            planner = study.planner()
            yield planner.plan()
            self.found(planner.findings)

    @property
    def findings(self) -> list[Finding]:
        return sorted(set(self._findings), key=lambda f: (f.id, natural_key(f.file), f))

    def _share_out(self, unread: Iterable[Finding]) -> dict[str, list[Finding]]:
        """Findings about unreadable files by the study beside whose files they lie; the others are the source's."""
        by_folder: dict[str, list[Finding]] = {}
        for finding in unread:
            folder = finding.path if finding.reason == "unlisted_folder" else _folder_of(finding.path)
            by_folder.setdefault(folder, []).append(finding)
        owners = self._owners(by_folder)
        beside: dict[str, list[Finding]] = {}
        for name, findings in by_folder.items():
            above, last = os.path.split(name)
            if len(owners[name]) == 1:
                (uid,) = owners[name]
                beside.setdefault(uid, []).extend(findings)
            elif not owners[name] and os.path.basename(above) == RSNA_FOLDER and DICOM_UID.fullmatch(last):
                beside.setdefault(last, []).extend(findings)
            else:
                self._findings.extend(findings)
        return beside

    def _owners(self, folders: Collection[str]) -> dict[str, set[str]]:
        """The studies that have files in each folder."""
        owners: dict[str, set[str]] = {folder: set() for folder in folders}
        for uid, headers in self._studies.items() if owners else ():
            for folder in {_folder_of(header.path) for header in headers} & owners.keys():
                owners[folder].add(uid)
        return owners


def _folder_of(path: str) -> str:
    """Of a path, or of an address in a store."""
    return os.path.dirname(path) or os.curdir
