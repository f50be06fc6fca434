"""A Dockerfile's steps, read from the file itself."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass
class Image:
    """What the steps make of an image. steps: (RUN, its command) and (COPY, its words), in order."""

    base: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)
    user: str = "0:0"
    folder: str = "/"
    entry: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def read_dockerfile(text: str) -> Image:
    """Raises ValueError for an instruction that is none of those above, as a change of the file may bring one."""
    image, arguments = Image(), dict[str, str]()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for instruction in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not instruction.strip():
            continue
        name, _, rest = instruction.strip().partition(" ")
        known = {**arguments, **image.environment}
        if name not in ("RUN", "HEALTHCHECK", "ENTRYPOINT", "CMD"):  # a shell or nobody fills those in
            rest = VARIABLE.sub(lambda match, known=known: known.get(match[1] or match[2], ""), rest)
        if name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name == "FROM":
            image.base = rest
        elif name in ("ENV", "LABEL"):
            pairs = dict(word.split("=", 1) for word in shlex.split(rest))
            (image.environment if name == "ENV" else image.labels).update(pairs)
        elif name in ("RUN", "COPY"):
            image.steps.append((name, rest.strip()))
        elif name == "USER":
            image.user = rest
        elif name == "WORKDIR":
            image.folder = rest
        elif name == "ENTRYPOINT":
            image.entry = json.loads(rest)
        elif name == "CMD":
            image.words = json.loads(rest)
        elif name == "HEALTHCHECK":
            image.health = json.loads(rest[rest.index("CMD") + 3 :])
        else:
            raise ValueError(f"the Dockerfile has {name}, which the replay does not know")
    return image


def copied(words: str, root: Path, into: Path) -> list[tuple[Path, Path]]:
    """(from, to) of a COPY: files into a folder that ends with /, else one file or folder to a path."""
    *sources, place = words.split()
    target = into / place.lstrip("/")
    if place.endswith("/"):
        return [(root / source, target / Path(source).name) for source in sources]
    (source,) = sources
    return [(root / source, target)]
