"""What a watch keeps in OUT/.watch, so that the next process knows what is done. It names studies and files by hashes only."""

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cache_schema.documents import canonical_json, write_whole

FOLDER = ".watch"


@dataclass(frozen=True)
class Done:
    """What became of a study in one state of its files. made_from: digest of the models and settings, "" for a refusal.

    id: "" where it has none that can be used. reason, message: of a refusal, "" for an answer.
    """

    id: str
    files: frozenset[int] = field(repr=False)
    made_from: str = ""
    reason: str = ""
    message: str = ""

    @property
    def is_refused(self) -> bool:
        return bool(self.reason)

    def holds(self, files: frozenset[int], made_from: str) -> bool:
        """Whether it still is what these files and models give. Files that were taken away change no answer: whoever tidies a
        folder up does so file by file."""
        return files == self.files if self.is_refused else self.made_from == made_from and files <= self.files


class WatchState:
    """By study: what became of it, and how often a process has died on it. Files that cannot be read have no study.

    What became of thousands of studies stays on the disk; memory holds a few bytes of each.
    """

    def __init__(self, out: Path):
        self.folder = out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob(".*.part"), *self.folder.glob(".unpacked-*")):  # by killed processes
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._sums: dict[str, tuple[int, int, str]] = {}
        """uid -> number and sum of the keys of its files that were last found done, with these models"""
        self.refused: dict[str, Done] = {}
        """by name of their files"""
        for path in sorted(self.folder.glob("study-*.json")):
            done = _load(path)
            if done is not None and done.is_refused:
                self.refused[path.stem] = done
        self._deaths = self._load_deaths()
        self.strays: set[int] = set()
        """keys of the files that were named"""

    def is_done(self, uid: str, files: frozenset[int], made_from: str) -> bool:
        """Whether a study in this state needs nothing."""
        summed = len(files), sum(files), made_from
        if self._sums.get(uid) == summed:
            return True
        done = self.done(uid)
        if done is None or not done.holds(files, made_from):
            return False
        self._sums[uid] = summed
        return True

    def is_refused(self, uid: str) -> bool:
        return _name(uid) in self.refused

    def done(self, uid: str) -> Done | None:
        return self.refused.get(_name(uid)) or _load(self._path(uid))

    def keep(self, uid: str, done: Done) -> None:
        document = asdict(done) | {"files": sorted(done.files)}
        write_whole(self._path(uid), canonical_json(document))
        self._sums.pop(uid, None)
        self.refused.pop(_name(uid), None)
        if done.is_refused:
            self.refused[_name(uid)] = done
        self.end(uid)

    def begin(self, uid: str) -> None:
        """A study is answered now. If the process dies on it, the next one knows."""
        self._deaths[_name(uid)] = self._deaths.get(_name(uid), 0) + 1
        self._save_deaths()

    def end(self, uid: str) -> None:
        """It is answered or refused, or the process ends as it should."""
        if self._deaths.pop(_name(uid), None) is not None:
            self._save_deaths()

    def deaths(self, uid: str) -> int:
        """How many processes have died on it."""
        return self._deaths.get(_name(uid), 0)

    def _path(self, uid: str) -> Path:
        return self.folder / f"{_name(uid)}.json"

    def _load_deaths(self) -> dict[str, int]:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            found = json.loads((self.folder / "begun.json").read_bytes())
            return {str(name): int(count) for name, count in found.items()}
        return {}

    def _save_deaths(self) -> None:
        write_whole(self.folder / "begun.json", canonical_json(self._deaths))


def _name(uid: str) -> str:
    return f"study-{hashlib.sha256(uid.encode(errors='surrogateescape')).hexdigest()[:32]}"


def _load(path: Path) -> Done | None:
    """None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
        return Done(**{**found, "files": frozenset(int(key) for key in found["files"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
