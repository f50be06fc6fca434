"""Checks of paths as the user typed them, where only a path on this machine will do."""

import re

from cache_schema.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_place(text: str) -> None:
    """Raises UsageError for an address (`s3://...`, `file://...`): a Path would make a folder named `s3:` of it."""
    if _ADDRESS.match(text):
        shown = re.sub("//.*@", "//...@", text)  # without credentials
        raise UsageError("is an address", where=shown, expected="a path on this machine: only caches lie in stores")
