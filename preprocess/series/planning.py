"""Which files make which study: headers by StudyInstanceUID, and what lies beside them and cannot be read."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from preprocess.findings import Finding
from preprocess.headers.file_header import FileHeader
from preprocess.headers.inventory import RSNA_FOLDER, scan
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
    plans, findings = plan_from_headers(found.headers, found.unread)
    return plans, [*found.about_others(), *findings]


def plan_from_headers(
    headers: Iterable[FileHeader], unread: Iterable[Finding] = ()
) -> tuple[list[StudyPlan], list[Finding]]:
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
    in_folder: dict[str, set[str]] = {}
    for uid, members in studies.items():
        for header in members:
            in_folder.setdefault(os.path.dirname(header.path) or ".", set()).add(uid)
    beside: dict[str, list[Finding]] = {}
    findings = []
    for finding in unread:
        path = Path(finding.path)
        folder = path if finding.reason == "unlisted_folder" else path.parent
        owners = in_folder.get(str(folder), set())
        if len(owners) == 1:
            beside.setdefault(next(iter(owners)), []).append(finding)
        elif not owners and folder.parent.name == RSNA_FOLDER and DICOM_UID.fullmatch(folder.name):
            beside.setdefault(folder.name, []).append(finding)
        else:
            findings.append(finding)
    plans = []
    for uid in sorted(studies.keys() | beside.keys()):
        judged = StudyPlanner(uid, studies.get(uid, []), beside.get(uid, []))
        plan = judged.plan()
        findings.extend(judged.findings)
        if plan is not None:
            plans.append(plan)
    return plans, sorted(set(findings), key=lambda f: (f.id, natural_key(f.file), f))
