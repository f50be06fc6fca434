"""Standard output for a command's results: readers that close it, full disks, and names that are not UTF-8."""

import io
import os
import sys
from typing import Any

OUTPUT = "standard output"


class _Named(io.FileIO):
    """Errors of writing carry the name of the stream; the system gives them none."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = OUTPUT
            raise


def open_output() -> None:
    """Call it before anything is printed or opened. Otherwise a file may get the number of a closed stream, and its output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    given = sys.__stdout__
    if given is not None and given is sys.stdout and given.fileno() == 1:
        file = io.BufferedWriter(_Named(1, "w", closefd=False))
        by_line, encoding = given.line_buffering, given.encoding
        # names of files need not be UTF-8
        sys.stdout = io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=by_line)


def lost_output() -> OSError | None:
    """Flush standard output. Returns the error where that fails, and writes nothing there any more; else None."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        drop_output()
        return error
    return None


def drop_output() -> None:
    """Write nothing there any more; Python itself would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
