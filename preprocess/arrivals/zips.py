"""Zips that arrive: which studies each holds, found out once, and kept for the next process under hashed names."""

import json
from pathlib import Path

from cache_schema.documents import canonical_json, write_whole
from cache_schema.errors import UsageError
from preprocess.archives import is_zip, unpacked
from preprocess.arrivals.seen import SeenFile, key_of
from preprocess.findings import Finding
from preprocess.headers.inventory import scan
from preprocess.headers.opened import FileState


def inner_name(folder: Path, zip_name: str, path: str) -> str:
    """Of a file in a zip that is unpacked in `folder`: its path below the watched folder, as if the zip were one, too."""
    return f"{zip_name}/{Path(path).relative_to(folder)}"


def open_zip(path: str, name: str, seen: SeenFile, work: Path) -> None:
    """Fills in the zip's content, or why it has none that can be used. work: a folder for unpacked and for kept files."""
    kept = work / f"zip-{seen.key:016x}.json"
    try:
        seen.content = {uid: [int(key) for key in keys] for uid, keys in json.loads(kept.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        seen.content = _content(path, name, seen, work)
        if seen.content:
            write_whole(kept, canonical_json(seen.content))
    if seen.content:
        seen.unread = None


def _content(path: str, name: str, seen: SeenFile, work: Path) -> dict[str, list[int]]:
    if not is_zip(path):
        seen.unread = Finding("", "", "refused", "archive", "a zip archive that is not whole", path)
        return {}
    found: dict[str, list[int]] = {}
    try:
        with unpacked(path, work) as folder:
            for header in scan(folder).headers:
                state = FileState(header.size, header.mtime_ns)
                found.setdefault(header.study_uid, []).append(key_of(inner_name(folder, name, header.path), state))
    except UsageError as error:
        seen.unread = Finding("", "", "refused", "archive", error.what, path)
        return {}
    found.pop("", None)
    if not found:
        seen.unread = Finding("", "", "refused", "archive", "a zip archive without DICOM images", path)
    return {uid: sorted(set(keys)) for uid, keys in found.items()}
