"""Errors of the operating system and of memory as one-line errors: a full disk needs no traceback."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_schema.errors import CspineError, advice_on, not_utf8, reason_of
from trainer.settings.paths import is_inside

TORCH_WRITING = re.compile(
    r"PytorchStreamWriter failed writing|inline_container\.cc|iostream error|unable to write to file"
)
"""messages of torch's RuntimeError when it cannot write a file"""
NOT_CONNECTED = "Gloo connectFullMesh failed"
"""in torch's RuntimeError when the processes cannot reach each other"""


def in_one_line(error: BaseException, source: Path | None = None) -> CspineError | None:
    """The one-line error to show to the user; None for a bug.

    source: a folder of scans. Names below it are not shown: they may contain names of patients.
    """
    if isinstance(error, CspineError):
        return error
    if isinstance(error, OSError):
        return _refused(error, source)
    if isinstance(error, MemoryError):
        return CspineError("there is not enough memory", do="end other programs, or use a machine with more")
    if isinstance(error, UnicodeError):
        return not_utf8(error)
    if isinstance(error, RuntimeError) and TORCH_WRITING.search(str(error)):
        return CspineError(
            "a file could not be written: the disk may be full", do="make room, then run the same command again"
        )
    if isinstance(error, RuntimeError) and NOT_CONNECTED in str(error):
        do = "name the network interface that the machines share by GLOO_SOCKET_IFNAME, and let its ports through"
        return CspineError("the processes of this run cannot connect to each other", do=do)
    return None


def _refused(error: OSError, source: Path | None) -> CspineError:
    do = advice_on(error)
    file = error.filename
    if isinstance(file, str | bytes | os.PathLike):
        where = Path(os.fsdecode(file))
        if source is not None and where != source and is_inside(where, source):
            return CspineError(f"{reason_of(error)}, for a file or folder below it", where=source, do=do)
        return CspineError(reason_of(error), where=where, do=do)
    return CspineError(f"a file or a connection failed ({_words(error)})", do=do)


def _words(error: OSError) -> str:
    """The reason of an OSError without a file name; those that libraries raise may have no errno."""
    text = " ".join(str(error).split())
    return reason_of(error) if error.errno is not None or not text else text[:200]


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Suppresses tracebacks of threads that store their exception, as TensorBoard's writer does."""
    before = threading.excepthook

    def hook(given: threading.ExceptHookArgs) -> None:
        if getattr(given.thread, "exception", None) is not given.exc_value:
            before(given)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
