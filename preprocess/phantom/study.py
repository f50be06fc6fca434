"""One synthetic study in memory: person, scan, fractures -> HU, labels and the truth about them."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.phantom.anatomy import Person, make_person
from preprocess.phantom.fractures import Fracture, possible_fractures
from preprocess.phantom.raster import Patch, vertebra_patch
from preprocess.phantom.scanner import SIZE, Scan, expose, make_scan
from preprocess.phantom.seeds import Stream, stream
from preprocess.phantom.tissue import paint_tissue

CORTEX, MARROW = 880.0, 360.0
CORTEX_MM = 1.5
LABELLED_LEVELS = 9


@dataclass(frozen=True)
class PhantomStudy:
    """`hu` int16 and `labels` uint8, both (slices, 512, 512) from head to feet; labels 1..7 = C1..C7, 8, 9 = T1, T2, 0
    elsewhere."""

    seed: int
    index: int
    person: Person
    scan: Scan
    fractures: dict[int, Fracture]
    hu: np.ndarray
    labels: np.ndarray


def make_phantom_study(seed: int, index: int, slices: int, fractured_levels: Iterable[int] = ()) -> PhantomStudy:
    """Study `index` with the given levels (1..7) broken. Anatomy, scan and noise depend on (seed, index, slices) only,
    so two calls that differ in `fractured_levels` are twins: the same voxels but for the broken bone."""
    person = make_person(seed, index)
    scan = make_scan(seed, index, person, slices)
    possible = possible_fractures(seed, index, person)
    fractures = {level: possible[level] for level in sorted(set(fractured_levels))}
    textures = _textures(seed, index)
    lowest_label = _lowest_label(seed, index, person)

    hu = np.empty((slices, SIZE, SIZE), np.int16)
    labels = np.zeros((slices, SIZE, SIZE), np.uint8)
    for number, z in enumerate(scan.z):
        clean, mask = _draw_slice(person, scan, fractures, float(z), textures)
        mask[mask > LABELLED_LEVELS] = 0
        if z < lowest_label:
            mask[mask > 7] = 0
        labels[number] = mask
        hu[number] = expose(scan, seed, index, number, clean)
    return PhantomStudy(seed, index, person, scan, fractures, hu, labels)


def _lowest_label(seed: int, index: int, person: Person) -> float:
    """The height at which the annotator stopped: somewhere in T1 or T2, as the competition's masks do."""
    upper, lower = person.vertebrae[7].centre[2], person.vertebrae[8].centre[2]
    return float(stream(seed, Stream.FILES, index).uniform(lower - 12, upper))


def _textures(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Two fields of SD 1 that a study keeps: slow for muscle at half resolution, fine for trabeculae at full
    resolution."""
    rng = stream(seed, Stream.TEXTURE, index)
    slow = cv2.GaussianBlur(rng.standard_normal((SIZE // 2, SIZE // 2), dtype=np.float32), (0, 0), 2.5)
    fine = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE), dtype=np.float32), (0, 0), 1.3)
    return slow / slow.std(), fine / fine.std()


def _draw_slice(
    person: Person, scan: Scan, fractures: dict[int, Fracture], z: float, textures: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    x, y = scan.columns(), scan.rows()
    half = paint_tissue(person, (x[0::2] + x[1::2]) / 2, (y[0::2] + y[1::2]) / 2, z)
    slow, fine = textures
    drift = int(z * 0.8)
    soft = (half > -250) & (half < 200)
    half += 6.0 * np.roll(slow, (drift, 2 * drift), (0, 1)) * soft
    hu = cv2.resize(half, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    grown = np.full((SIZE, SIZE), np.inf, np.float32)
    grain = np.roll(fine, (2 * drift, drift), (0, 1))
    for vertebra in person.vertebrae:
        for ribs in (True, False):
            patch = vertebra_patch(vertebra, x, y, z, None if ribs else fractures.get(vertebra.level), ribs)
            if patch is None:
                continue
            at = (patch.rows, patch.columns)
            _lay_bone(hu[at], patch, grain[at], scan.pixel)
            if not ribs:
                nearest = (patch.edge < 0) & (patch.edge < grown[at])
                mask[at][nearest] = vertebra.level
                grown[at][nearest] = patch.edge[nearest]
    return hu, mask


def _lay_bone(hu: np.ndarray, patch: Patch, grain: np.ndarray, pixel: float) -> None:
    """Cortex over marrow inside the patch's bone, blended into `hu` in place over one pixel at its edge."""
    cover = np.clip(0.5 - patch.edge / np.float32(pixel), 0, 1)
    cortex = np.clip(1.5 + patch.depth / np.float32(CORTEX_MM), 0, 1)
    bone = MARROW + 55 * grain + (CORTEX - MARROW) * cortex
    hu += cover * (bone - hu)
