"""One file of models: a zip, stored and not compressed, of safetensors, a manifest in JSON and a model card.

Every byte is covered by a digest: those of an entry by the manifest, the manifest and the zip's own structure by the zip's
comment. Nothing in it is ever unpickled.
"""

import errno
import hashlib
import json
import struct
import zipfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cache_schema.errors import CacheError, UsageError
from trainer.answers.anatomy import LevelsFound
from trainer.scores.calibration import Calibration
from trainer.tables.settings import TableSettings
from trainer.trained.models import Models, TrainedModel, check_models

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST, CARD = "cspine-models.json", "README.md"
VERSION = 1
COMMENT = b"cspine-models sha256:"
"""followed by 64 hexadecimal digits"""
COMMENT_BYTES = len(COMMENT) + 64
LOCAL = struct.Struct("<26xHH")
"""of a local file header: lengths of the name and of the extra field"""
BLOCK = 2**22
COPY_AGAIN = "copy it again, or make it again by trainer pack"
EXPECTED = "a file made by trainer pack"


def write_entries(path: Path, entries: Iterator[tuple[str, bytes]]) -> None:
    """Writes the zip and its comment. The same entries give the same bytes. The manifest comes first."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)  # of 1980: no time of this machine
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content)
        archive.comment = COMMENT + bytes(64)
    with path.open("r+b") as file:
        digest = _structure_digest(file)
        file.seek(-64, 2)
        file.write(digest.encode())


class PackFile:
    """A packed file, its structure and manifest checked. Raises UsageError if it is none, CacheError if it is damaged."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            if not _is_pack(file):
                raise UsageError("is not a file of models", where=path, expected=EXPECTED)
            try:
                self.entries = _entries(file)
                file.seek(-64, 2)
                whole = file.read() == _structure_digest(file).encode()
                self.manifest: dict[str, Any] = json.loads(self._content(file, MANIFEST)) if whole else {}
            except (zipfile.BadZipFile, struct.error, OSError, ValueError, KeyError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of a wrong offset
                    raise
                raise self._damaged("is damaged or cut") from None
        if not whole:
            raise self._damaged("is damaged: its structure does not match its digest")
        if self.manifest["version"] != VERSION:
            what = f"is a file of models of version {self.manifest['version']}"
            raise UsageError(what, where=path, expected=f"version {VERSION}")

    def read(self, name: str) -> bytes:
        """An entry's content. Raises CacheError if it does not match its digest."""
        with self.path.open("rb") as file:
            content = self._content(file, name)
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]:
            raise self._damaged(f"is damaged: {name} does not match its digest")
        return content

    def check(self) -> None:
        """Compares every entry with its digest. Raises CacheError for the first that differs."""
        for name in self.manifest["files"]:
            self.read(name)

    def tensors(self, model: dict[str, Any]) -> "dict[str, Tensor]":
        """A model's tensors by name. model: its entry in the manifest."""
        from safetensors.torch import load

        from trainer.models.backbone import PREFIX

        found = load(self.read(model["file"]))
        if model["backbone"] is not None:
            found |= {PREFIX + name: tensor for name, tensor in load(self.read(model["backbone"])).items()}
        return found

    def _content(self, file: BinaryIO, name: str) -> bytes:
        start, size = self.entries[name]
        file.seek(start)
        return file.read(size)

    def _damaged(self, what: str) -> CacheError:
        return CacheError(what, where=self.path, do=COPY_AGAIN)


def models_of_pack(path: Path) -> Models:
    """Raises UsageError for a file that is none, CacheError for one that is damaged; its tensors are checked as they are read."""
    file = PackFile(path)
    held = file.manifest
    by_stage: dict[str, list[TrainedModel]] = {}
    for each in held["models"]:
        model = TrainedModel(
            each["name"],
            each["config"],
            each["metadata"],
            each["digest"],
            each["bytes"],
            partial(file.tensors, each),
            path,
            partial(_seen, held["salt"], each["seen"]),
        )
        by_stage.setdefault(model.stage, []).append(model)
    every = [model for models in by_stage.values() for model in models]
    return Models(
        path,
        {stage: tuple(models) for stage, models in by_stage.items()},
        TableSettings.model_validate(held["thresholds"]),
        check_models(every),
        None if held["calibration"] is None else Calibration.from_document(held["calibration"]),
        None if held["levels_found"] is None else LevelsFound(*held["levels_found"]),
        leave_out=tuple(held["leave_out"]),
        priors=held["priors"] or {},
    )


def salted(salt: str, id: str) -> str:
    """How a pack names a study that its models were trained on."""
    return hashlib.sha256(f"{salt}:{id}".encode()).hexdigest()[:32]


def _seen(salt: str, known: dict[str, list[str]], ids: Collection[str]) -> dict[str, set[str]]:
    names = {salted(salt, id): id for id in ids}
    return {kind: {names[each] for each in own if each in names} for kind, own in known.items()}


def _is_pack(file: BinaryIO) -> bool:
    """By its first name or its comment: either may be damaged."""
    head = file.read(30 + len(MANIFEST))
    size = file.seek(0, 2)
    file.seek(max(0, size - COMMENT_BYTES))
    return head.endswith(MANIFEST.encode()) or file.read().startswith(COMMENT)


def _entries(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """name -> first byte and size of each entry's content. Raises BadZipFile if they are compressed or overlap."""
    found, end = {}, 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            file.seek(entry.header_offset)
            start = entry.header_offset + 30 + sum(LOCAL.unpack(file.read(30)))
            if entry.header_offset < end or entry.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile
            end = start + entry.file_size
            found[entry.filename] = (start, entry.file_size)
    return found


def _structure_digest(file: BinaryIO) -> str:
    """sha256 hex of all bytes but the contents of entries other than the manifest, and the digest at the end."""
    spans = sorted(span for name, span in _entries(file).items() if name != MANIFEST)
    size, position, total = file.seek(0, 2) - 64, 0, hashlib.sha256()
    for start, length in [*spans, (size, 0)]:
        file.seek(position)
        total.update(file.read(start - position))
        position = start + length
    return total.hexdigest()
