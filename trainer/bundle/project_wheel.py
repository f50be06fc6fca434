"""The project's own wheel: the same bytes from a checkout and from where a wheel of it was installed."""

import base64
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

from cache_schema.errors import CspineError
from trainer.bundle.packages import PROJECT

PACKAGES = ("cache_schema", "preprocess", "trainer")
SUFFIXES = {".py", ".yaml", ".css", ".js", ".txt", ".typed"}
WHEEL = "Wheel-Version: 1.0\nGenerator: trainer bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def project_wheel() -> tuple[str, bytes]:
    """(file name, content)."""
    # setuptools leaves one without METADATA in a checkout
    every = metadata.distributions(name=PROJECT)
    own = next((each for each in every if each.read_text("METADATA")), metadata.distribution(PROJECT))
    base = f"{canonicalize_name(own.name).replace('-', '_')}-{own.version}"
    content = dict(_modules())
    # without the README, which a checkout may have changed since it was installed
    content[f"{base}.dist-info/METADATA"] = _text(own, "METADATA").partition(b"\n\n")[0] + b"\n"
    content[f"{base}.dist-info/WHEEL"] = WHEEL.encode()
    content[f"{base}.dist-info/entry_points.txt"] = _text(own, "entry_points.txt")
    lines = []
    for name, each in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(each).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(each)}\n")
    record = f"{base}.dist-info/RECORD"
    content[record] = "".join([*lines, f"{record},,\n"]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:  # versions of zlib give other bytes
        for name, each in content.items():
            entry = zipfile.ZipInfo(name)  # of 1980: no time of this machine
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, each)
    return f"{base}-py3-none-any.whl", made.getvalue()


def _modules() -> Iterator[tuple[str, bytes]]:
    """(name in the wheel, content) of all files of the packages, in a fixed order."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        root = Path(next(iter(spec.submodule_search_locations)))
        found = []
        for folder, inner, names in os.walk(root, followlinks=True):  # trainer/configs may be a link
            inner[:] = [name for name in inner if name != "__pycache__"]
            found += [Path(folder, name) for name in names if Path(name).suffix in SUFFIXES]
        for path in sorted(found):
            yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _text(own: metadata.Distribution, name: str) -> bytes:
    text = own.read_text(name)
    if text is None:
        raise CspineError(f"the installed {PROJECT} has no {name}", do="install it again")
    return text.encode()
