"""`python container/sbom.py FILE`: the packages of requirements.runtime.lock as a bill of materials, CycloneDX 1.6 in JSON.

Versions and hashes are those of the lock, licences and dependencies those of the installed packages, for this platform and Python.
The same lock and packages give the same bytes: it carries no time, and its serial number is derived from what it lists.
"""

import importlib.metadata
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.runtime.lock"
PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^ ;\\]+)(?: *; *([^\\\n]+?))? *\\?$", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
EXTRAS = ("", "dicom")
"""of the project itself, that the lock is made with"""
NAMESPACE = uuid.UUID("7f0c1f1c-6a0b-5d3e-9d53-0a2f3f2f9a11")


class Pinned(NamedTuple):
    """One package of the lock. hashes: sha256 of each file that the lock allows for it, in hexadecimal."""

    name: str
    version: str
    hashes: tuple[str, ...]


def pinned(lock: str) -> Iterator[Pinned]:
    """The packages of a lock that this platform and Python need."""
    found = list(PINNED.finditer(lock))
    ends = [match.start() for match in found[1:]] + [len(lock)]
    for match, end in zip(found, ends, strict=True):
        name, version, marker = match.groups()
        if marker is None or Marker(marker).evaluate():
            yield Pinned(canonicalize_name(name), version, tuple(sorted(HASH.findall(lock[match.end() : end]))))


def licence(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """An SPDX expression or a name, in the words of the package; None where it has none."""
    if expression := metadata.get("License-Expression"):
        return expression
    named = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier", []) if each.startswith("License :: ")
    ]
    text = (metadata.get("License") or "").strip()
    return text if text and "\n" not in text and len(text) < 80 else (", ".join(named) or None)


def needed(name: str, extras: tuple[str, ...] = ("",)) -> set[str]:
    """The packages that an installed one requires, here."""
    found = set()
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            found.add(canonicalize_name(requirement.name))
    return found


def component(
    name: str, version: str, hashes: tuple[str, ...] = (), kind: ComponentType = ComponentType.LIBRARY
) -> Component:
    purl, metadata = PackageURL("pypi", name=name, version=version), importlib.metadata.metadata(name)
    given = licence(metadata)
    licences = [] if given is None else [LicenseFactory().make_from_string(given)]
    if given is not None and "LicenseRef" in given:  # a reference of the package's own, no expression of the list's
        licences = [DisjunctiveLicense(name=given)]
    return Component(
        type=kind,
        name=name,
        version=version,
        bom_ref=str(purl),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in hashes],
        licenses=licences,
        description=metadata.get("Summary"),
    )


def bill(lock: str) -> str:
    """The document. Raises SystemExit where the installed packages are not those of the lock."""
    packages = {each.name: each for each in pinned(lock)}
    for each in packages.values():
        try:
            installed = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] != each.version:
            sys.exit(f"error: {each.name} is {installed}; expected {each.version} of {LOCK.name}; run make setup")
    bom, own = Bom(), importlib.metadata.version("cspine")
    bom.metadata.component = component("cspine", own, kind=ComponentType.APPLICATION)
    made = {name: component(name, each.version, each.hashes) for name, each in packages.items()}
    bom.components.update(made.values())
    for name, each in [*made.items(), ("cspine", bom.metadata.component)]:
        wanted = needed(name, EXTRAS if name == "cspine" else ("",))
        bom.register_dependency(each, [made[other] for other in sorted(wanted & made.keys())])
    document = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]
    text = json.dumps(document, sort_keys=True)
    return json.dumps(document | {"serialNumber": uuid.uuid5(NAMESPACE, text).urn}, indent=2, sort_keys=True) + "\n"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python container/sbom.py FILE")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(bill(LOCK.read_text()))
    print(f"{out}: {len(json.loads(out.read_text())['components'])} packages")


if __name__ == "__main__":
    main()
