"""Wheels from the user's package registry by pip, each checked against the digests that it carries."""

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email import message_from_bytes
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from cache_schema.errors import CspineError, UsageError

GLIBC = (2, 35)
"""the newest that wheels may need: that of Ubuntu 22.04, which Kaggle has; a bundle states what its own need"""
AT_ONCE = 6
"""packages in one call of pip, which keeps nothing of a call that is interrupted"""
MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_x86_64")
"""the older names stand for glibc 2.17 and before, which every Python that is served needs too"""
BLOCK = 2**20


class NoWheel(CspineError):
    """The registry has none, or cannot be reached."""


def requires_of(name: str, version: str, python: str, given: Mapping[str, Path]) -> list[str]:
    """What a package requires in this version: by a given wheel, the installed package, or the registry. Raises NoWheel."""
    if name in given:
        with zipfile.ZipFile(given[name]) as archive:
            return message_from_bytes(archive.read(_own(archive, "METADATA"))).get_all("Requires-Dist") or []
    try:
        found = metadata.distribution(name)
        if found.version == version:
            return found.requires or []
    except metadata.PackageNotFoundError:
        pass
    return _asked(name, version, python)


@cache
def _asked(name: str, version: str, python: str) -> list[str]:
    """By the registry, which most often need not send the wheel for it."""
    with TemporaryDirectory(prefix="bundle-") as folder:
        report = Path(folder, "report.json")
        words = ["install", "--dry-run", "--ignore-installed", "--target", folder, "--report", str(report)]
        _pip(*words, *_for(python), f"{name}=={version}")
        (found,) = json.loads(report.read_text())["install"]
    return found["metadata"].get("requires_dist") or []


def download(versions: Mapping[str, str], python: str, folder: Path, tell: Callable[[str], None]) -> None:
    """Fills the folder with the wheels of these packages; those that are there and whole are kept, all others removed.

    versions: name -> version. Raises NoWheel; the same call goes on after it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {}
    for path in sorted(folder.iterdir()):
        named = name_and_version(path)
        if named is not None and versions.get(named[0]) == named[1] and fault(path) is None:
            there[named[0]] = path
        else:
            path.unlink()
    left = [name for name in versions if name not in there]
    for first in range(0, len(left), AT_ONCE):
        part = left[first : first + AT_ONCE]
        tell(f"downloading {first + 1} to {first + len(part)} of {len(left)} packages: {', '.join(part)}")
        with TemporaryDirectory(prefix=".part-", dir=folder.parent) as incoming:
            _pip("download", "--dest", incoming, *_for(python), *(f"{name}=={versions[name]}" for name in part))
            for path in sorted(Path(incoming).iterdir()):
                if (what := fault(path)) is not None:
                    raise NoWheel(f"{path.name} {what} as it came", do="run the same command again")
                path.rename(folder / path.name)


def name_and_version(path: Path) -> tuple[str, str] | None:
    """Of a wheel, by its file name; None for another file."""
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return None
    return str(name), str(version)


def glibc_needed(names: Iterable[str]) -> tuple[int, int]:
    """By the platforms in the names of wheels; each needs the oldest of its own."""
    oldest_of_each = [(0, 0)]
    for name in names:
        tags = (MANYLINUX.fullmatch(tag.platform) for tag in parse_wheel_filename(name)[3])
        if found := [(int(tag[1]), int(tag[2])) for tag in tags if tag]:
            oldest_of_each.append(min(found))
    return max(oldest_of_each)


def fault(wheel: Path) -> str | None:
    """What is wrong with a wheel by the digests of its own RECORD; None if nothing is."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            record = _own(archive, "RECORD")
            rows = csv.reader(archive.read(record).decode().splitlines())
            digests = {row[0]: row[1] for row in rows if len(row) > 1 and row[1]}
            for entry in archive.infolist():
                if entry.is_dir() or entry.filename.startswith(record):
                    continue
                kind, _, expected = digests.get(entry.filename, "").partition("=")
                if kind != "sha256":
                    return f"states no digest of {entry.filename}"
                total = hashlib.sha256()
                with archive.open(entry) as file:
                    while block := file.read(BLOCK):
                        total.update(block)
                if base64.urlsafe_b64encode(total.digest()).rstrip(b"=").decode() != expected.rstrip("="):
                    return f"is damaged: {entry.filename} does not match its digest"
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return "is not a whole wheel"
    except Exception as error:  # zlib and others have their own
        return f"is damaged ({type(error).__name__})"
    return None


def _own(archive: zipfile.ZipFile, name: str) -> str:
    """The entry in the wheel's own .dist-info; packages that it contains whole have theirs. Raises ValueError if there is none."""
    (entry,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{name}") and each.count("/") == 1)
    return entry


def given_wheel(path: Path, python: str) -> tuple[str, str]:
    """(name, version) of a wheel that the user gives. Raises UsageError for one that is none, damaged, or of another Python."""
    named = name_and_version(path)
    if named is None or not path.is_file():
        raise UsageError("is no wheel", where=path, expected="torch-VERSION-cpNNN-...whl")
    tag = f"cp{python.replace('.', '')}"
    tags = parse_wheel_filename(path.name)[3]
    if not any(each.interpreter in (tag, "py3") and each.platform.endswith(("any", "_x86_64")) for each in tags):
        what = f"is not for Python {python} on Linux x86_64"
        raise UsageError(what, where=path, expected=f"a wheel with {tag} and x86_64 in its name")
    if (wrong := fault(path)) is not None:
        raise UsageError(wrong, where=path, do="download it again")
    return named


def _for(python: str) -> list[str]:
    """pip's words for wheels of one Python on Linux x86_64."""
    major, newest = GLIBC
    platforms = [f"manylinux{old}_x86_64" for old in ("1", "2010", "2014")]  # pip prefers the first that there is
    platforms += [f"manylinux_{major}_{minor}_x86_64" for minor in range(5, newest + 1)]
    words = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    words += ["--abi", f"cp{python.replace('.', '')}"]
    return [*words, *(word for each in platforms for word in ("--platform", each))]


def _pip(command: str, *words: str) -> None:
    """Raises UsageError where there is no pip, NoWheel where it fails."""
    if find_spec("pip") is None:
        raise UsageError("this environment has no pip", do="run `python -m ensurepip`, then the same command again")
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", command, "--quiet", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        what = said[0] if said else done.stderr.strip().splitlines()[-1:] or f"status {done.returncode}"
        asked = ", ".join(str(canonicalize_name(word.split("==")[0])) for word in words if "==" in word)
        do = "see that pip reaches its registry, then run the same command again"
        raise NoWheel(f"pip cannot get {asked}: {what}", do=do)
