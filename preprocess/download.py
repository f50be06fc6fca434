"""The RSNA 2022 cervical spine set through Kaggle's own client, into the layout that build-cache finds by itself."""

import os
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cache_schema.errors import UsageError, reason_of
from preprocess.progress import say

COMPETITION = "rsna-2022-cervical-spine-fracture-detection"
DATA_BYTES = 343 * 10**9
NEEDED_BYTES = 2 * DATA_BYTES
"""the archive, and what is unpacked from it"""
UNPACKED = (("train_images",), ("segmentations",), ("train.csv",))
ACCOUNT_VARIABLES = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME")
ACCOUNT_FILES = ("kaggle.json", "access_token")
UNSOUND = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""what reading a damaged archive raises; the last three where it asks for what zipfile has not"""
RULES = f"accept the rules at www.kaggle.com/c/{COMPETITION}"


def download(dest: str | Path, *, needed: int = NEEDED_BYTES, tell: Callable[[str], None] = say) -> int:
    """Fetch and unpack the set below `dest`; returns the number of files there. A second run continues where the first one ended.

    needed: free bytes asked for, less what already lies in `dest`. Raises UsageError, before anything is fetched, where
    the disk is too small, Kaggle's client is not installed or has no account; and where the client fails.
    """
    dest = Path(dest)
    if dest.exists() and not dest.is_dir():
        raise UsageError("is a file", where=dest, expected="a folder")
    _check_disk(dest, needed)
    client = shutil.which("kaggle")
    if client is None:
        do = f"install it (pip install kaggle), {RULES}, save an API token as ~/.kaggle/kaggle.json, and run this again"
        raise UsageError("Kaggle's client is not installed", do=do)
    if not _has_account():
        do = f"make one, {RULES}, save an API token as ~/.kaggle/kaggle.json, and run this again"
        raise UsageError("Kaggle's client has no account to use", do=do)
    dest.mkdir(parents=True, exist_ok=True)
    tell(f"fetching {COMPETITION} into {dest}")
    command = [client, "competitions", "download", "-c", COMPETITION, "-p", str(dest)]
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UsageError(f"Kaggle's client cannot be started ({reason_of(error)})", where=client) from error
    if status:
        do = f"{RULES}, then run the same command again: it continues where it ended"
        raise UsageError(f"Kaggle's client failed with exit status {status}", do=do)
    return _unpack(dest, tell)


def _check_disk(dest: Path, needed: int) -> None:
    there = next(folder for folder in (dest, *dest.absolute().parents) if folder.is_dir())
    kept = sum(file.stat().st_size for file in dest.rglob("*") if file.is_file()) if dest.is_dir() else 0
    free = shutil.disk_usage(there).free
    if free < needed - kept:
        short = (needed - kept - free) / 1e9
        what = f"{free / 1e9:.0f} GB are free, {short:.0f} GB too few"
        raise UsageError(
            what, where=dest, expected=f"{needed / 1e9:.0f} GB for the archive and what is unpacked from it"
        )


def _has_account() -> bool:
    home = os.path.expanduser("~")  # stays as it is for a user without a home
    folders = [os.environ.get("KAGGLE_CONFIG_DIR"), Path(home, ".kaggle"), Path(home, ".config", "kaggle")]
    saved = any(Path(folder, name).is_file() for folder in folders if folder for name in ACCOUNT_FILES)
    return saved or any(os.environ.get(name) for name in ACCOUNT_VARIABLES)


def _unpack(dest: Path, tell: Callable[[str], None]) -> int:
    archive = dest / f"{COMPETITION}.zip"
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [
                m for m in packed.infolist() if not m.is_dir() and PurePosixPath(m.filename).parts[:1] in UNPACKED
            ]
            tell(f"unpacking {len(members)} files")
            for member in members:
                file = dest / member.filename
                if not (file.is_file() and file.stat().st_size == member.file_size):
                    packed.extract(member, dest)
    except OSError as error:
        raise UsageError(
            f"cannot be unpacked ({reason_of(error)})", where=archive, do="run the same command again"
        ) from error
    except UNSOUND as error:
        do = "remove it and run the same command again"
        raise UsageError(f"cannot be unpacked ({type(error).__name__})", where=archive, do=do) from error
    tell(f"{archive} is no longer needed")
    return len(members)
