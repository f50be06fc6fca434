"""Checks of paths as the user typed them. Only paths on this machine are supported."""

import re

from cache_schema.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_place(text: str) -> None:
    """Raises UsageError for an address (`s3://...`, `file://...`): a Path would make a folder named `s3:` of it."""
    if _ADDRESS.match(text):
        what = "is an address, and stores that are reached by one are not read yet"
        raise UsageError(what, where=text, expected="a path on this machine")
