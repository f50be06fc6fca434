"""Writes a bundle: wheels, models, the scripts that check and use them, and the manifest with the digest of each file."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cache_schema.documents import sync, write_whole
from cache_schema.errors import UsageError
from trainer.bundle.arrival import IMAGE, MANIFEST, MODELS, arrival_image
from trainer.bundle.packages import Needed
from trainer.bundle.project_wheel import project_wheel
from trainer.bundle.targets import Target
from trainer.bundle.wheels import download, glibc_needed, name_and_version

WHEELS = "wheels"
SCRIPTS = ("predict.py", "check.py")
BLOCK = 2**22
README = """# Answers without a network

1. Put this folder on the machine as it is. It is for Python {python} on Linux x86_64; `python check.py` says whether it is whole.
2. `python predict.py source=FOLDER out=DIR`: FOLDER holds DICOM files (or is a zip of them), DIR is where answers go, and all else that
   is written. Further settings are those of `trainer predict`.
3. Read DIR/report.html, DIR/predictions.csv and DIR/submission.csv.

An interrupted command goes on where it was. Exit status: 0 done, 1 something is damaged or not as it should be, 2 a wrong setting,
3 some studies could not be read. This is research software, not a medical device.
"""


@dataclass(frozen=True)
class Contents:
    """What a bundle is made of."""

    target: Target
    needed: Needed
    models: Path
    given: Mapping[str, Path]
    """wheels by name that the user gives"""


def write_bundle(out: Path, contents: Contents, tell: Callable[[str], None]) -> dict[str, Any]:
    """Writes the folder beside `out` and renames it last. Returns the manifest. The same contents give the same bytes.

    A bundle that is there is replaced; its wheels are used again, as are those that an interrupted command left.
    Raises UsageError if `out` is another folder, NoWheel if a wheel cannot be had.
    """
    check_out(out)
    part = out.with_name(f".{out.name}.part")
    wheels = part / WHEELS
    wheels.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():  # of an interrupted command: only its wheels are used again
        if path != wheels:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _use_again(out / WHEELS, wheels)
    versions = {name: version for name, version in contents.needed.brought.items() if name not in contents.given}
    download(versions, contents.target.python, wheels, tell)
    for path in contents.given.values():
        shutil.copyfile(path, wheels / path.name)
    name, content = project_wheel()
    write_whole(wheels / name, content)
    shutil.copyfile(contents.models, part / MODELS)
    carried = files("trainer.bundle") / "carried"
    for script in SCRIPTS:
        write_whole(part / script, (carried / script).read_bytes())
    write_whole(part / "README.md", README.format(python=contents.target.python).encode())
    write_whole(part / IMAGE, _saved(arrival_image()))
    manifest = _manifest(part, contents)
    write_whole(part / MANIFEST, sealed(manifest))
    sync(part)
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    sync(out.parent)
    return manifest


def check_out(out: Path) -> None:
    """Raises UsageError if `out` is something else than a bundle or an empty folder."""
    if out.exists() and not out.is_dir():
        raise UsageError("is not a folder", where=f"out={out}", expected="a folder, or a path that does not exist yet")
    if out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise UsageError("holds other files", where=f"out={out}", expected="a folder that does not exist yet")


def sealed(content: Mapping[str, Any]) -> bytes:
    """The manifest with a digest of itself."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({"content": content, "sha256": digest}, indent=1, sort_keys=True).encode()


def listed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """name below the folder -> (bytes, sha256 hex) of each file but the manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                found[name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _manifest(folder: Path, contents: Contents) -> dict[str, Any]:
    found = listed_files(folder)
    names = [name.rpartition("/")[2] for name in found if name.endswith(".whl")]
    own = {name: {"version": version, "needs": needs} for name, (version, needs) in contents.needed.own.items()}
    return {
        "python": contents.target.python,
        "glibc": glibc_needed(names),
        "own": own,
        "brought": dict(contents.needed.brought),
        "files": found,
    }


def _use_again(before: Path, wheels: Path) -> None:
    """Wheels of the bundle that is replaced; they are checked as all are that lie there."""
    for path in before.glob("*.whl"):
        if name_and_version(path) is not None and not (wheels / path.name).exists():
            os.link(path, wheels / path.name)


def _saved(image: Any) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return buffer.getvalue()
