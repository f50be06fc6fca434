"""Do the values of a scan look like Hounsfield units? Judged on a sample of every slice, padding left aside."""

from dataclasses import dataclass

import numpy as np

from cache_schema.layout import HU_HIGH, HU_LOW
from preprocess.word_tables import WordTables

SAMPLES = 32
"""a side of a slice"""
AIR_HU = (-1300.0, HU_LOW)
"""below it lies what was never measured: scanners fill the corners with -2000 or -3024"""
LEAST_AIR = 1e-3
"""share of the sample; a scan of a neck shows air around it and in the windpipe"""
TISSUE_HU, LEAST_TISSUE = (-200.0, 300.0), 0.01
"""fat to blood; a neck is made of it"""
MOST_BRIGHT_EDGE = 0.5
"""share of the samples on the frame's edge that may lie at the top of the window"""
METAL_HU, MOST_METAL = 2500.0, 0.1
"""more of it than any implant or filling shows is values that wrapped: air of -1000 HU in 12 unsigned bits is 3096"""


@dataclass(frozen=True)
class Sample:
    """Counts of one slice."""

    pixels: int
    air: int
    tissue: int
    metal: int
    edge: int
    bright_edge: int

    @classmethod
    def of(cls, stored: np.ndarray, tables: WordTables) -> "Sample":
        """stored: words of a slice, (rows, columns)."""
        down, across = max(1, stored.shape[0] // SAMPLES), max(1, stored.shape[1] // SAMPLES)
        inner = _without_padding(stored[::down, ::across].ravel(), tables)
        edges = (stored[0, ::across], stored[-1, ::across], stored[::down, 0], stored[::down, -1])
        edge = _without_padding(np.concatenate(edges), tables)
        hu, edge_hu = tables.hu[inner], tables.hu[edge]
        kinds = ((hu >= AIR_HU[0]) & (hu <= AIR_HU[1]), (hu >= TISSUE_HU[0]) & (hu <= TISSUE_HU[1]), hu > METAL_HU)
        counts = (np.count_nonzero(found) for found in kinds)
        return cls(len(hu), *counts, len(edge_hu), np.count_nonzero(edge_hu >= HU_HIGH))


def _without_padding(words: np.ndarray, tables: WordTables) -> np.ndarray:
    return words if tables.padding is None else words[~tables.padding[words]]


def why_implausible(samples: list[Sample]) -> str | None:
    """One phrase where the values of all slices together are hardly HU; None where they may be."""
    pixels, edge = sum(s.pixels for s in samples), sum(s.edge for s in samples)
    if not pixels:
        return None
    if edge and sum(s.bright_edge for s in samples) > MOST_BRIGHT_EDGE * edge:
        return "the edge of the frame, where air is, lies at the top of the intensity window"
    if sum(s.metal for s in samples) > MOST_METAL * pixels:
        return f"{sum(s.metal for s in samples) / pixels:.0%} of the pixels are above {METAL_HU:.0f} HU, as where values wrapped"
    if sum(s.air for s in samples) < LEAST_AIR * pixels:
        return "there is no air at all"
    if sum(s.tissue for s in samples) < LEAST_TISSUE * pixels:
        return "there is no soft tissue"
    return None
