"""safetensors files with a digest of their content: weights and the files of a checkpoint. Does not import torch."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from cache_schema.documents import canonical_json, stamp
from cache_schema.errors import UsageError, reason_of
from trainer.process.command import warn_once
from trainer.runs.damaged import Damaged
from trainer.runs.file_names import MODEL_FILE

DIGEST = "digest"
"""metadata key: sha256 over the names, dtypes, shapes and bytes of all tensors and over the other metadata"""
MADE_WITH = "made_with"
"""metadata key: JSON of the versions of Python and of the packages that trained the weights"""
BLOCK = 2**22
TRAIN_AGAIN = "train it again"

_checked: set[tuple] = set()
"""states of files (cache_schema.documents.stamp) that this process has found intact"""


def sealed(serialised: Callable[[dict[str, str]], bytes], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with its digest in its metadata. serialised: metadata -> bytes."""
    own = {name: value for name, value in metadata.items() if name != DIGEST}
    return serialised(own | {DIGEST: _digest(io.BytesIO(serialised(own)))})


def weights_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file. Raises UsageError if there is none or it cannot be read, Damaged if it is invalid."""
    if not path.is_file():
        raise UsageError("no finished run", where=path.parent, expected=f"a folder with {MODEL_FILE}")
    with reading(path), safe_open(path, framework="np") as file:
        return file.metadata() or {}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises UsageError if a safetensors file cannot be read, Damaged if it is invalid."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot be read as weights ({reason_of(error)})", where=path) from None
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"cannot be read as weights ({error})", where=path, do=TRAIN_AGAIN) from None


def weights_digest(path: Path) -> str:
    """The digest that the file states; unchecked, see `require_whole`."""
    return weights_metadata(path).get(DIGEST) or file_digest(path)


def require_whole(path: Path) -> str | None:
    """Compares a file with its digest, once in a process, and returns the digest. Raises Damaged if they differ.

    For weights without a digest it prints a warning and returns None.
    """
    stated = weights_metadata(path).get(DIGEST)
    if stated is None:
        warn_once(f"{path}: has no digest: its tensors are not checked")
        return None
    seen = stamp(path, path.stat())
    if seen not in _checked:
        with path.open("rb") as file:
            if _digest(file) != stated:
                raise Damaged("does not match its digest", where=path, do=TRAIN_AGAIN)
        if seen is not None:
            _checked.add(seen)
    return stated


def version_of(package: str) -> str:
    """The installed version; `unknown` for a package that runs without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(file: BinaryIO) -> str:
    """sha256 of the header in canonical JSON, without the digest, and of all bytes that follow."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", None) or {}
    metadata.pop(DIGEST, None)
    total = hashlib.sha256(canonical_json([metadata, header]))
    while block := file.read(BLOCK):
        total.update(block)
    return total.hexdigest()
