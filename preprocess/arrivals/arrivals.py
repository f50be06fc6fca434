"""Studies of a folder that others write into, as soon as each has stopped growing."""

import hashlib
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import UsageError
from preprocess.archives import unpacked
from preprocess.arrivals.seen import Folder, SeenFile, key_of
from preprocess.arrivals.zips import inner_name, open_zip
from preprocess.findings import REASONS, Finding
from preprocess.headers.inventory import Inventory, read_many, scan
from preprocess.headers.opened import FileState
from preprocess.series.planning import SALT_BYTES, Planning
from preprocess.series.study_plan import StudyPlan

ZIPS_A_LOOK = 4
"""zips that a look unpacks to see what they hold: the others wait for the next one, and no answer waits for them all"""


@dataclass(frozen=True)
class Settled:
    """A study whose files have not changed for a while. since: `time.monotonic()` of the last change that was seen."""

    uid: str
    files: frozenset[int]
    """a key for each file's state"""
    since: float


@dataclass(frozen=True)
class Stray:
    """A file that cannot be read, has not changed for a while, and belongs to no study. number: in natural order of all."""

    key: int
    number: int
    reason: str
    message: str


@dataclass(frozen=True)
class Planned:
    """What became of a settled study: a plan and the digest of all that it is made of; or a refusal; or none of both, where its
    files have changed since."""

    study: Settled
    plan: StudyPlan | None = None
    digest: str = ""
    refusal: Finding | None = None


class Arrivals:
    """`folder` as others fill it: flat files, folders, zips, in any order.

    quiet: seconds without a change after which a study has stopped growing. work: a folder of this process alone, for zips.
    beat: called again and again while it works. Raises UsageError if there is no such folder.
    """

    def __init__(self, folder: Path, quiet: float, work: Path, beat: Callable[[], None] = lambda: None):
        if not folder.is_dir():
            raise UsageError("no such folder", where=f"watch={folder}", expected="the folder that studies arrive in")
        self.quiet, self._work, self._beat = quiet, work, beat
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._folder = Folder(folder, self._salt, beat)
        self._now = time.monotonic()
        self._groups = _Groups({})

    def look(self) -> None:
        """Once over the folder. Raises UsageError while it cannot be listed, as of a network share that is away."""
        self._now = self._folder.look()
        opened = 0
        for path, seen in self._folder.files.items():
            if seen.is_unopened_zip and self._is_quiet(seen) and opened < ZIPS_A_LOOK:
                self._beat()
                open_zip(path, self._folder.name(path), seen, self._work)
                opened += 1
        self._groups = _Groups(self._folder.files)
        lost = self._folder.lost
        for uid in [uid for uid, when in lost.items() if self._now - when > self.quiet]:
            del lost[uid]

    def settled(self) -> list[Settled]:
        """Studies that have stopped growing, the one that did so first first."""
        lost, found = self._folder.lost, []
        for uid, group in self._groups.studies.items():
            since = max(seen.changed for seen in group.files.values())
            since = max(since, lost.get(uid, since))
            if self._now - since >= self.quiet and not self._is_waited_for(group, since):
                found.append(Settled(uid, group.keys, since))
        return sorted(found, key=lambda study: (study.since, study.uid))

    def strays(self) -> list[Stray]:
        """Files that have stopped growing and that no study can use."""
        found = []
        for number, (path, seen) in enumerate(self._folder.files.items(), start=1):
            if seen.unread is None or seen.is_unopened_zip or not self._is_quiet(seen):
                continue
            if self._groups.owner(path) is None:
                found.append(Stray(seen.key, number, seen.unread.reason, seen.unread.message))
        return found

    @contextmanager
    def planned(self, studies: Sequence[Settled]) -> Iterator[list[Planned]]:
        """Plans of these studies, in their order; their headers are read now. Zips are unpacked while the block runs."""
        groups = [self._groups.studies[study.uid] for study in studies]
        zips = {path for group in groups for path, seen in group.files.items() if seen.content}
        paths = {path for group in groups for path in group.files} - zips
        with ExitStack() as opened:
            found = read_many(list(enumerate(map(Path, sorted(paths)), start=1)), self._salt)
            roots: dict[str, str] = {}
            refused: dict[str, str] = {}
            for path in sorted(zips):
                self._beat()
                try:
                    folder = opened.enter_context(unpacked(path, self._work))
                except UsageError as error:
                    refused |= {study.uid: error.what for study in studies if path in self._files(study)}
                    continue
                roots[str(folder)] = path
                found.add(scan(folder, self._salt))
            yield self._plan(studies, found, roots, refused)

    def _plan(
        self, studies: Sequence[Settled], found: Inventory, roots: dict[str, str], refused: dict[str, str]
    ) -> list[Planned]:
        there = {study.uid: self._keys(found, study.uid, roots) for study in studies}
        planning = Planning(found)
        plans = {plan.study_uid: plan for plan in planning if plan is not None}
        made = []
        for study in studies:
            plan = plans.get(study.uid)
            if study.uid in refused:
                made.append(Planned(study, refusal=Finding("", "", "refused", "archive", refused[study.uid])))
            elif there[study.uid] != self._groups.studies[study.uid].own_keys:
                made.append(Planned(study))
                for path in self._files(study):
                    self._folder.forget(path)
            elif plan is not None:
                made.append(Planned(study, plan, self._digest(plan, roots)))
            else:
                about = [each for each in planning.findings if each.id == study.uid and each.severity == "refused"]
                first = next((each for each in about if each.refuses_study), about[0] if about else None)
                made.append(
                    Planned(study, refusal=first or Finding("", "", "refused", "invalid_id", REASONS["invalid_id"]))
                )
        return made

    def _files(self, study: Settled) -> dict[str, SeenFile]:
        return self._groups.studies[study.uid].files

    def _keys(self, found: Inventory, uid: str, roots: dict[str, str]) -> set[int]:
        headers = found.studies.get(uid, ())
        return {key_of(self._name(each.path, roots), FileState(each.size, each.mtime_ns)) for each in headers}

    def _digest(self, plan: StudyPlan, roots: dict[str, str]) -> str:
        """Another one if a file was changed, added to those that are used, or another flag holds."""
        files = [(self._name(path, roots), size, mtime) for path, size, mtime in plan.files]
        return hashlib.sha256(repr((files, plan.flags)).encode(errors="surrogateescape")).hexdigest()

    def _name(self, path: str, roots: dict[str, str]) -> str:
        for folder, archive in roots.items():
            if path.startswith(f"{folder}/"):
                return inner_name(Path(folder), self._folder.name(archive), path)
        return self._folder.name(path)

    def _is_quiet(self, seen: SeenFile) -> bool:
        return self._now - seen.changed >= self.quiet

    def _is_waited_for(self, group: "_Group", since: float) -> bool:
        """Whether a file that cannot be read yet may belong to the study: it lies beside its files and came in time."""
        beside = (seen for folder in group.folders for seen in self._groups.unread.get(folder, ()))
        return any(
            seen.appeared <= since + self.quiet and (seen.is_unopened_zip or not self._is_quiet(seen))
            for seen in beside
        )


class _Group:
    """A study's files: its own, zips with some of them, and what cannot be read beside them."""

    def __init__(self) -> None:
        self.files: dict[str, SeenFile] = {}
        self.folders: set[str] = set()
        self.own_keys: set[int] = set()
        """of DICOM images, in zips too"""
        self.keys: frozenset[int] = frozenset()


class _Groups:
    """The files of a look by study."""

    def __init__(self, files: dict[str, SeenFile]):
        self.studies: dict[str, _Group] = defaultdict(_Group)
        self.unread: dict[str, list[SeenFile]] = defaultdict(list)
        """by folder"""
        owners: dict[str, set[str]] = defaultdict(set)
        for path, seen in files.items():
            if seen.uid:
                group, folder = self.studies[seen.uid], os.path.dirname(path)
                group.files[path] = seen
                group.own_keys.add(seen.key)
                group.folders.add(folder)
                owners[folder].add(seen.uid)
            for uid, keys in (seen.content or {}).items():
                self.studies[uid].files[path] = seen
                self.studies[uid].own_keys.update(keys)
        self._owners = {folder: next(iter(uids)) for folder, uids in owners.items() if len(uids) == 1}
        for path, seen in files.items():
            if seen.unread is not None:
                self.unread[os.path.dirname(path)].append(seen)
                if (owner := self.owner(path)) is not None and not seen.is_unopened_zip:
                    self.studies[owner].files[path] = seen
        for group in self.studies.values():
            beside = (seen.key for seen in group.files.values() if seen.unread is not None)
            group.keys = frozenset(group.own_keys).union(beside)

    def owner(self, path: str) -> str | None:
        """The study beside whose files alone this one lies."""
        return self._owners.get(os.path.dirname(path))
