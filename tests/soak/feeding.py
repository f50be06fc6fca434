"""`python feeding.py SOURCE IN`: sends the studies of SOURCE, a folder each, into IN as DICOM receivers do.

In pieces and in random order, several studies at a time: into one flat folder, a folder each, two in one folder, or as a zip; by
files that grow under their name, or that get it once they are whole. Prints JSON: for each study the longest pause, in seconds,
between two changes of its files, and how it came.
"""

import argparse
import io
import json
import random
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WAYS = ("flat", "folder", "pair", "zip")
AT_ONCE = 4
"""studies that arrive at the same time"""


@dataclass
class Study:
    name: str
    way: str
    files: dict[Path, bytes]
    """where they go, below IN, and what they hold"""
    changes: list[float] = field(default_factory=list)

    @property
    def longest_pause(self) -> float:
        return max((later - one for one, later in zip(self.changes, self.changes[1:], strict=False)), default=0.0)


def study_of(folder: Path, number: int, way: str) -> Study:
    held = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    if way == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in held.items():
                archive.writestr(zipfile.ZipInfo(f"study/{name}", (2024, 1, 1, 0, 0, 0)), data)
        return Study(folder.name, way, {Path(f"zips/{number}.zip"): packed.getvalue()})
    places = {
        "flat": lambda name: Path("flat") / f"{number}-{name}",
        "folder": lambda name: Path(f"study-{number}") / name,
        "pair": lambda name: Path(f"pair-{number // (2 * len(WAYS))}") / f"{number}-{name}",
    }
    return Study(folder.name, way, {places[way](name): data for name, data in held.items()})


def pieces(study: Study, into: Path, chance: random.Random) -> Iterator[None]:
    """Writes a study; one change to IN for each step."""
    paths = list(study.files)
    chance.shuffle(paths)
    for path in paths:
        data, place = study.files[path], into / path
        place.parent.mkdir(parents=True, exist_ok=True)
        renamed = chance.random() < 0.5
        writing = place.with_name(f"{place.name}.part") if renamed else place
        cuts = sorted(chance.sample(range(len(data)), chance.choice((0, 0, 1, 2))))
        with open(writing, "wb") as file:
            for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                file.write(data[begin:end])
                file.flush()
                study.changes.append(time.monotonic())
                yield
        if renamed:
            writing.rename(place)
            study.changes.append(time.monotonic())
            yield


def feed(source: Path, into: Path, seed: int, pause: float, ways: tuple[str, ...] = WAYS) -> list[Study]:
    """pause: seconds after each change, at most."""
    chance = random.Random(seed)
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    studies = [study_of(folder, number, ways[number % len(ways)]) for number, folder in enumerate(folders)]
    coming = list(studies)
    running: list[Iterator[None]] = []
    while coming or running:
        while coming and len(running) < AT_ONCE:
            running.append(pieces(coming.pop(0), into, chance))
        one = chance.choice(running)
        if next(one, one) is one:
            running.remove(one)
        time.sleep(chance.uniform(0, pause))
    return studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("into", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.01)
    given = parser.parse_args()
    fed = feed(given.source, given.into, given.seed, given.pause)
    print(json.dumps({study.name: [study.way, study.longest_pause] for study in fed}))


if __name__ == "__main__":
    main()
