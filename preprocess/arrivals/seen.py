"""What is known of the files in a folder that others write into, from one look at it to the next."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.findings import Finding
from preprocess.headers.file_kinds import ZIP, archive_kind
from preprocess.headers.opened import FileState
from preprocess.headers.read import OtherFile, read_headers
from preprocess.headers.source_files import find_files

HEAD_BYTES = 512
FILES_A_BEAT = 500


def key_of(name: str, state: FileState) -> int:
    """64 bits that tell one state of a file from another. name: its path below the folder, which they do not show."""
    text = f"{name}\0{state.size}\0{state.mtime_ns}"
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big")


@dataclass(slots=True)
class SeenFile:
    """One state of one file. Times are those of `time.monotonic`, when a look found it so."""

    key: int
    state: FileState
    appeared: float
    """in any state"""
    changed: float
    """to this state"""
    uid: str = ""
    """StudyInstanceUID; "" for what is no DICOM image"""
    unread: Finding | None = None
    """why it cannot be read, or not yet"""
    is_zip: bool = False
    """by its first bytes: it may not be whole"""
    content: dict[str, list[int]] | None = None
    """of a zip that was opened: StudyInstanceUID -> keys of the files in it"""

    @property
    def is_unopened_zip(self) -> bool:
        return self.is_zip and self.content is None

    @property
    def is_closed(self) -> bool:
        """Whether it could not be opened: neither its size nor its time tells when it can be."""
        return self.unread is not None and self.unread.reason == "unreadable_file"


@dataclass
class Folder:
    """A folder's files. A look costs a stat for each file, and opens those that are new or changed."""

    path: Path
    salt: bytes
    beat: Callable[[], None]
    """called again and again during a look"""
    files: dict[str, SeenFile] = field(default_factory=dict)
    """by path; a folder that cannot be listed counts as an unreadable file"""
    lost: dict[str, float] = field(default_factory=dict)
    """StudyInstanceUID -> when it last lost a file"""

    def look(self) -> float:
        """Brings `files` up to date. Returns when it began. Raises UsageError where the folder itself cannot be listed."""
        now, before, self.files = time.monotonic(), self.files, {}
        try:
            found, unlisted = find_files(self.path)
        except BaseException:
            self.files = before
            raise
        for count, path in enumerate(map(str, found)):
            if count % FILES_A_BEAT == 0:
                self.beat()
            try:
                status = os.stat(path)
            except OSError:
                continue  # it was renamed or removed since
            state, known = FileState(status.st_size, status.st_mtime_ns), before.get(path)
            if known is None or known.state != state or known.is_closed:
                self.beat()
                seen = time.monotonic()  # after the stat: a change that it did not see is later
                read = self._read(path, state, seen if known is None else known.appeared, seen)
                if known is None or known.state != state or not read.is_closed:
                    known = read
            self.files[path] = known
        for finding in unlisted:
            self.files[finding.path] = before.get(finding.path) or self._unlisted(finding, now)
        for path, old in before.items():
            new = self.files.get(path)
            if old.uid and (new is None or new.uid != old.uid):
                self.lost[old.uid] = now
            for uid in old.content or () if new is not old else ():
                self.lost[uid] = now
        return now

    def forget(self, path: str) -> None:
        """The next look takes it for a new file."""
        self.files.pop(path, None)

    def name(self, path: str) -> str:
        return os.path.relpath(path, self.path)

    def _read(self, path: str, state: FileState, appeared: float, now: float) -> SeenFile:
        seen = SeenFile(key_of(self.name(path), state), state, appeared, now)
        found = read_headers(path, self.salt)
        if isinstance(found, Finding):
            seen.unread, seen.is_zip = found, found.reason == "archive" and _begins_as_zip(path)
        elif not isinstance(found, OtherFile):
            seen.uid = found[0].study_uid
            if not seen.uid:
                seen.unread = Finding("", "", "refused", "unreadable_header", "StudyInstanceUID is absent", path)
        return seen

    def _unlisted(self, finding: Finding, now: float) -> SeenFile:
        state = FileState(-1, -1)
        return SeenFile(key_of(self.name(finding.path), state), state, now, now, unread=finding)


def _begins_as_zip(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return archive_kind(file.read(HEAD_BYTES)) == ZIP
    except OSError:  # it was removed since: the next look sees that
        return False
