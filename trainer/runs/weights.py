"""Tensors on disk that say what they should hold: model.safetensors and a checkpoint's files. Nothing here imports torch."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from cache_schema.documents import canonical_json, stamp
from cache_schema.errors import UsageError, reason_of
from trainer.runs.damaged import Damaged, tell
from trainer.runs.files import MODEL_FILE

"""a finished run's weights"""
DIGEST = "digest"
"""in the metadata: sha256 over names, kinds, shapes and bytes of all tensors and over the other metadata"""
BLOCK = 2**22
TRAIN_AGAIN = "train it again"

_checked: set[tuple] = set()
"""files, as the file system tells one state from another, that this process has found whole"""


def sealed(serialised: Callable[[dict[str, str]], bytes], metadata: dict[str, str]) -> bytes:
    """A safetensors file that holds its own digest. serialised: metadata -> the bytes of the file."""
    own = {name: value for name, value in metadata.items() if name != DIGEST}
    return serialised(own | {DIGEST: _digest(io.BytesIO(serialised(own)))})


def weights_metadata(path: Path) -> dict[str, str]:
    """What a weights file says about itself, read without torch. Raises Damaged for what is none, UsageError where there is
    no file or it cannot be read."""
    if not path.is_file():
        raise UsageError("no finished run", where=path.parent, expected=f"a folder with {MODEL_FILE}")
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except OSError as error:
        raise UsageError(f"cannot be read as weights ({reason_of(error)})", where=path) from None
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"cannot be read as weights ({error})", where=path, do=TRAIN_AGAIN) from None


def weights_digest(path: Path) -> str:
    """What the file says that it holds. Whoever reads the tensors calls `require_whole`."""
    return weights_metadata(path).get(DIGEST) or file_digest(path)


def require_whole(path: Path) -> None:
    """Raises Damaged where tensors or metadata are not those of the digest. Read once in a process.

    Weights without a digest are named.
    """
    stated = weights_metadata(path).get(DIGEST)
    if stated is None:
        return tell(f"{path}: holds no digest of its tensors: they are taken unchecked")
    seen = stamp(path, path.stat())
    if seen in _checked:
        return None
    with path.open("rb") as file:
        found = _digest(file)
    if found != stated:
        raise Damaged("does not match its digest", where=path, do=TRAIN_AGAIN)
    _checked.update({seen} - {None})
    return None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(file: BinaryIO) -> str:
    """Of a file that safetensors can read: its header without the digest, in one spelling, then all that follows."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", None) or {}
    metadata.pop(DIGEST, None)
    total = hashlib.sha256(canonical_json([metadata, header]))
    while block := file.read(BLOCK):
        total.update(block)
    return total.hexdigest()
