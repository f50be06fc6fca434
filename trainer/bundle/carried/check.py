"""`python check.py`: whether the bundle is whole and made for this machine. Imports nothing that it carries before it is checked."""

import hashlib
import json
import os
import platform
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
OF_UPLOADS = {"dataset-metadata.json"}
"""Kaggle's client wants it in a folder that it uploads"""
COPY_AGAIN = "copy or upload the bundle again"
BLOCK = 2**22


class Refused(Exception):
    """One line: what is wrong with the bundle or this machine, and what to do."""


def checked() -> dict:
    """The manifest, once every file matches it and this machine is of its kind. Raises Refused."""
    manifest = _manifest()
    _check_files(manifest["files"])
    _check_machine(manifest)
    return manifest


def unpacked(manifest: dict, own: Path) -> Path:
    """The folder below `own` with all wheels unpacked: that of an earlier command, or a new one, named once it is whole."""
    place = own / f"packages-{manifest['sha256'][:16]}"
    if os.pathsep in str(place):
        raise Refused(
            f"{own.parent}: Python cannot import from a folder with {os.pathsep} in its name; choose another out="
        )
    if place.is_dir():
        return place
    own.mkdir(parents=True, exist_ok=True)
    for old in own.glob("packages-*"):
        shutil.rmtree(old)  # of a killed command, or of another bundle
    part = own / f"{place.name}.part"
    for name in manifest["files"]:
        if name.endswith(".whl"):
            with zipfile.ZipFile(FOLDER / name) as archive:
                _unpack(archive, part)
    os.replace(part, place)
    return place


def check_versions(own: dict, packages: Path) -> None:
    """Compares the machine's own packages with the versions that fit. Raises Refused.

    own: name -> the versions that fit, as `needs`. packages: the bundle's, unpacked.
    """
    sys.path.insert(0, str(packages))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    do = f"make the bundle again with python={here} target=FILE, FILE being what `pip freeze` prints here"
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        raise Refused(f"not the packages that the bundle is for: packaging is not there; {do}") from None
    wrong = []
    for name, each in sorted(own.items()):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not there")
            continue
        if not SpecifierSet(each["needs"]).contains(version, prereleases=True):
            wrong.append(f"{name} {version} does not fit {each['needs']}")
    if wrong:
        raise Refused(f"not the packages that the bundle is for: {', '.join(wrong)}; {do}")


def environment(packages: Path, own: Path) -> dict:
    """The variables of the prediction and of all processes that it starts: imports from `packages`, writes below `own` only."""
    own.joinpath("tmp").mkdir(exist_ok=True)
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    places = ["MPLCONFIGDIR", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"]
    places += ["CUDA_CACHE_PATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR"]
    return {
        **os.environ,
        **{name: str(own / "cache" / name.lower()) for name in places},
        "TMPDIR": str(own / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(packages), *before]),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _manifest() -> dict:
    path = FOLDER / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        content = document["content"]
        said = json.dumps(content, sort_keys=True, separators=(",", ":"))
        whole = document["sha256"] == hashlib.sha256(said.encode()).hexdigest()
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; {COPY_AGAIN}") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise Refused(f"{path}: is damaged; {COPY_AGAIN}")
    return {**content, "sha256": document["sha256"]}


def _check_files(files: dict) -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if not path.is_dir()}
    for name in sorted(files.keys() - there):
        raise Refused(f"{FOLDER / name}: is missing; {COPY_AGAIN}")
    for name in sorted(there - files.keys() - {MANIFEST} - OF_UPLOADS):
        raise Refused(f"{FOLDER / name}: is not of this bundle; move it away")
    for name, (size, digest) in sorted(files.items()):
        total = hashlib.sha256()
        with open(FOLDER / name, "rb") as file:
            while block := file.read(BLOCK):
                total.update(block)
            if file.tell() != size or total.hexdigest() != digest:
                raise Refused(f"{FOLDER / name}: is damaged: it does not match its digest; {COPY_AGAIN}")


def _check_machine(manifest: dict) -> None:
    here, kind = f"{sys.version_info.major}.{sys.version_info.minor}", f"{sys.platform} {platform.machine()}"
    if here != manifest["python"]:
        do = f"make it with python={here}"
        raise Refused(f"this is Python {here}; the bundle is for Python {manifest['python']}; {do}")
    if kind != "linux x86_64":
        raise Refused(f"this machine is {kind}; the bundle is for linux x86_64")
    name, version = platform.libc_ver()
    if name == "glibc" and [int(part) for part in version.split(".")[:2]] < manifest["glibc"]:
        needs = ".".join(map(str, manifest["glibc"]))
        raise Refused(f"this machine has glibc {version}; the bundle's packages need {needs} or newer")


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """A wheel as an installer does it, but for scripts and headers, which prediction does not use."""
    for entry in archive.infolist():
        name = entry.filename
        first, _, rest = name.partition("/")
        if first.endswith(".data"):
            kind, _, name = rest.partition("/")
            if kind not in ("purelib", "platlib"):
                continue
        if entry.is_dir() or not name:
            continue
        path = folder / name
        if ".." in path.parts:
            raise Refused(f"{archive.filename}: {name} would lie outside {folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
        if entry.external_attr >> 16 & 0o111:
            path.chmod(0o755)


if __name__ == "__main__":
    try:
        found = checked()
        print(f"the bundle is whole: {len(found['files'])} files, for Python {found['python']}")
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
