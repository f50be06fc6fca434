"""The scanner: which slices and field of view it takes of a person, its blur and its noise. None of it knows a
label."""

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.phantom.anatomy import Person
from preprocess.phantom.seeds import Stream, stream

SIZE = 512
LOWEST_HU, HIGHEST_HU = -1024, 3071


@dataclass(frozen=True)
class Scan:
    """Geometry and quality. `x`, `y` are the first pixel's centre, `z` the slices' heights from head to feet, all in
    patient mm (LPS)."""

    field_of_view: float
    pixel: float
    spacing: float
    x: float
    y: float
    z: np.ndarray
    blur: float
    noise: float
    grain: float

    def columns(self) -> np.ndarray:
        return (self.x + self.pixel * np.arange(SIZE)).astype(np.float64)

    def rows(self) -> np.ndarray:
        return (self.y + self.pixel * np.arange(SIZE)).astype(np.float64)


def make_scan(seed: int, index: int, person: Person, slices: int) -> Scan:
    """A scan that holds all of C1..C7 somewhere: the neck is 0.54 to 0.95 of its length (reference 3.3 gives 0.76), at
    a random place in it."""
    rng = stream(seed, Stream.SCAN, index)
    top = person.vertebrae[0].centre[2] + 12 * person.vertebrae[0].scale
    low = person.vertebrae[6].to_patient(np.array([(0, 0, -11.0), (0, 44.0, -22.0)]))[:, 2].min() - 2
    length = (top - low) / (0.54 + 0.41 * rng.beta(1.8, 1.8))
    above = (0.03 + 0.90 * rng.beta(0.7, 0.8)) * (length - (top - low))
    spacing = length / slices
    z = top + above - spacing * (np.arange(slices) + 0.5)

    field = 180 + 80 * rng.beta(1.0, 2.4)
    middle = person.middle_at((top + low) / 2)
    cx = middle[0] + np.clip(rng.normal(0, 0.06), -0.13, 0.13) * field
    cy = middle[1] + (np.clip(rng.normal(-0.01, 0.065), -0.14, 0.12)) * field
    pixel = field / SIZE
    return Scan(
        field_of_view=field,
        pixel=pixel,
        spacing=spacing,
        x=cx - pixel * (SIZE - 1) / 2,
        y=cy - pixel * (SIZE - 1) / 2,
        z=z,
        blur=rng.uniform(0.42, 0.62),
        noise=rng.uniform(21.0, 26.0),
        grain=rng.uniform(1.5, 1.85),
    )


def expose(scan: Scan, seed: int, index: int, number: int, clean: np.ndarray) -> np.ndarray:
    """Ideal HU float32 (512, 512) -> what the scanner stores: blurred, noisy, int16 HU. Slice `number` has its own
    noise whatever it shows."""
    image: np.ndarray = cv2.GaussianBlur(clean, (0, 0), scan.blur / scan.pixel)
    rng = stream(seed, Stream.NOISE, index, number)
    white = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    image += scan.noise * _textured(white, scan.grain)
    return np.clip(np.rint(image), LOWEST_HU, HIGHEST_HU).astype(np.int16)


def _textured(white: np.ndarray, grain: float) -> np.ndarray:
    """White noise of SD 1 -> noise of SD 1 with the short-range correlation a reconstruction kernel leaves; `grain` is
    its sigma in pixels."""
    kernel = cv2.getGaussianKernel(11, grain, cv2.CV_32F)
    return cv2.sepFilter2D(white, -1, kernel, kernel) / np.float32((kernel**2).sum())
