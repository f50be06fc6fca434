"""Random series as DICOM files: two sound volumes mixed into one series, and sound ones with all that a sound one may have."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_files import STUDY, dataset, write
from pydicom import uid

from preprocess import open_study
from preprocess.series.planning import plan_studies

STEPS = (0.5, 0.625, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
OFFSETS = (0.15, 0.2, 0.25, 0.3, 1 / 3, 0.37, 0.4, 0.62, 0.7, 0.8)
"""of the step; near half a step positions alone look like one volume"""

Fields = Callable[[int, int], dict]
"""(volume, place in its order) -> elements that tell the two volumes apart"""

MARKS: dict[str, Fields] = {
    "acquisition time": lambda v, j: {"AcquisitionTime": f"1012{30 * v:02d}"},
    "acquisition time of each": lambda v, j: {"AcquisitionTime": f"10{12 + 5 * v:02d}{j // 2:02d}.{j % 2 * 5}"},
    "content time": lambda v, j: {"ContentTime": f"1012{30 * v:02d}.25"},
    "content time of each": lambda v, j: {"ContentTime": f"10{12 + 5 * v:02d}{j // 2:02d}.{j % 2 * 5}"},
    "acquisition": lambda v, j: {"AcquisitionNumber": str(v + 1)},
    "acquisition of each": lambda v, j: {"AcquisitionNumber": str(1 + 200 * v + j)},
    "voltage": lambda v, j: {"KVP": ("80", "140")[v]},
    "kernel": lambda v, j: {"kernel": ("B30s", "B60s")[v]},
    "stack": lambda v, j: {"StackID": str(v + 1)},
    "temporal position": lambda v, j: {"TemporalPositionIdentifier": str(v + 1)},
    "frame of reference": lambda v, j: {"FrameOfReferenceUID": f"1.2.{v}"},
    "patient": lambda v, j: {"PatientID": f"P{v}"},
    "series number": lambda v, j: {"SeriesNumber": str(2 + v)},
    "image type": lambda v, j: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", f"CT_SOM{v}"]},
    "thickness": lambda v, j: {"SliceThickness": str(v + 1)},
    "transfer syntax": lambda v, j: {"syntax": (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)[v]},
    "in-plane origin": lambda v, j: {"x": -8.0 - 9.0 * v},
    "folder": lambda v, j: {"folder": f"part {v}"},
    "nothing": lambda v, j: {},
}


def write_mixture(folder: Path, seed: int) -> tuple[str, dict[str, int], tuple[int, int]]:
    """(what tells the volumes apart, path -> volume, slices of each volume)."""
    chance = random.Random(seed)
    mark = chance.choice(list(MARKS))
    sizes, step = (chance.randint(8, 40), chance.randint(8, 40)), chance.choice(STEPS)
    start = round(chance.uniform(-300, 300), chance.randint(0, 3))
    if chance.random() < 0.5:  # more than a tenth of the places are the other's
        shared = (
            chance.randint(int(sum(sizes) * 0.13) + 1, min(sizes)) if sum(sizes) * 0.13 < min(sizes) else min(sizes)
        )
        offset = float(sizes[0] - shared)
    else:
        offset = chance.randint(0, sizes[0] // 2) + chance.choice(OFFSETS + (() if mark == "nothing" else (0.5,)))
    volumes = {}
    for volume, size in enumerate(sizes):
        order = list(range(size)) if chance.random() < 0.5 else list(range(size))[::-1]
        for j, k in enumerate(order):
            fields = {"x": -8.0, "folder": "s"} | MARKS[mark](volume, j)
            name = f"{chance.randrange(10**6):06d}-{volume}-{j}.dcm"
            z = start + (offset * volume + k) * step
            path = folder / fields.pop("folder") / name
            _write(path, z, fields, number=j + 1, value=1000 * volume + k)
            volumes[str(path)] = volume
    return mark, volumes, sizes


def write_sound(folder: Path, seed: int) -> np.ndarray:
    """The distances between the slices along their normal, head to feet, mm."""
    chance = random.Random(seed)
    count, step = chance.randint(8, 60), chance.choice(STEPS)
    heights = [round(chance.uniform(-300, 300), chance.randint(0, 3)) + k * step for k in range(count)]
    heights = [heights[0] + k * step for k in range(count)]
    if chance.random() < 0.4:  # another spacing from somewhere on
        at, wider = chance.randint(3, count - 3), step * chance.choice((1.5, 1.75, 2, 2.5))
        heights = heights[:at] + [heights[at - 1] + (k + 1) * wider for k in range(count - at)]
    if chance.random() < 0.5:
        share = chance.choice((0.02, 0.05, 0.1, 0.2))
        heights = [z for k, z in enumerate(heights) if k < 5 or chance.random() > share]
    if chance.random() < 0.4:
        heights = [round(z, 1) for z in heights]
    numbers = list(range(1, len(heights) + 1))
    numbering = chance.choice(("up", "down", "random", "same"))
    numbers = {"up": numbers, "down": numbers[::-1], "random": chance.sample(numbers, len(numbers))}.get(numbering)
    own = chance.choice(("", "time", "acquisition", "folder", "frame of reference"))
    tilt = np.radians(chance.choice((0, 0, 12)))
    ways = [(k, z) for k, z in enumerate(heights)][:: chance.choice((1, -1))]
    twice = chance.choice(("", "", "some", "every"))
    for j, (k, z) in enumerate(ways):
        fields: dict = {"x": -8.0}
        if own == "time":
            fields |= {"AcquisitionTime": f"1012{j // 2:02d}.{j % 2 * 5}", "ContentTime": f"1013{j // 2:02d}.{j % 2}"}
        if own == "acquisition":
            fields["AcquisitionNumber"] = str(j + 1)
        if own == "frame of reference":
            fields["FrameOfReferenceUID"] = f"1.2.{j}"
        if tilt:
            fields["ImageOrientationPatient"] = [1, 0, 0, 0, f"{np.cos(tilt):.9f}", f"{-np.sin(tilt):.9f}"]
        path = folder / (f"f{j}" if own == "folder" else "s") / f"{j:04d}.dcm"
        _write(path, z, fields, number=numbers[k] if numbers else 1, value=k)
        if twice == "every" or (twice == "some" and chance.random() < 0.2):
            again = path.with_name(f"{chance.randrange(10**6)} again.dcm")
            again.write_bytes(path.read_bytes())
    return -np.diff(sorted(heights, reverse=True)) * np.cos(tilt)


def _write(path: Path, z: float, fields: dict, *, number: int, value: int) -> None:
    x = fields.pop("x")
    hu = np.full((4, 6), value - 1000, np.int16)
    hu[0] = -1000
    write(path, dataset(hu, number=number, ImagePositionPatient=[x, -6.0, f"{z:.6f}"], **fields))


def mixes(folder: Path, seed: int) -> str | None:
    """What is wrong with how a mixture was judged: slices of both volumes in one study; None where that is not so."""
    mark, volumes, sizes = write_mixture(folder, seed)
    plans, _ = plan_studies(folder)
    kept = {volumes[place.path] for plan in plans for place in plan.slices}
    return f"seed {seed}: both of {sizes}, told apart by {mark}" if len(kept) > 1 else None


def loses(folder: Path, seed: int) -> str | None:
    """What is wrong with how a sound series was judged: refused, shortened or out of order; None where it is whole."""
    distances = write_sound(folder, seed)
    plans, findings = plan_studies(folder)
    if not plans:
        return f"seed {seed}: refused, {[f.message for f in findings if f.severity == 'refused'][:1]}"
    study, _ = open_study(plans[0])
    if len(study.z) != len(distances) + 1 or np.abs(-np.diff(study.z) - distances).max() > 1e-3:
        return f"seed {seed}: {len(study.z)} of {len(distances) + 1} slices, or at other places"
    return None if study.id == STUDY else f"seed {seed}: another study"
