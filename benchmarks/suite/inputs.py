"""What every way is given: DICOM files and items; and the images that are right."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.others import with_opencv
from benchmarks.sources import write_sources
from benchmarks.suite.items import Items, items_of
from cache_schema import Cache
from cache_schema.errors import UsageError
from preprocess.build.build_cache import build_cache
from preprocess.series.planning import plan_studies

LEAST_SLICES = 96


@dataclass(frozen=True)
class Inputs:
    """DICOM files of studies, and items of them."""

    files: dict[str, list[str]]
    """by study, head to feet"""
    dicom_bytes: int
    windows: Items
    triplets: Items

    @property
    def slices(self) -> int:
        return sum(len(paths) for paths in self.files.values())


def write_inputs(folder: Path, studies: int, slices: int) -> Inputs:
    """Phantoms as JPEG Lossless, each twice, as the competition's files are. Raises UsageError below 96 slices."""
    if slices < LEAST_SLICES:
        raise UsageError("are too few for a window", where=f"--slices {slices}", expected=f"{LEAST_SLICES} or more")
    source = write_sources(folder, studies, slices)["sv1"]
    for study in (source / "train_images").iterdir():
        if len(list(study.iterdir())) < LEAST_SLICES:  # a real one, which has no window
            shutil.rmtree(study)
    build_cache(source, folder / "cache", tell=lambda line: None)
    files = {plan.id: [str(entry.path) for entry in plan.slices] for plan in plan_studies(source)[0]}
    return Inputs(
        files,
        sum(Path(path).stat().st_size for paths in files.values() for path in paths),
        *items_of(Cache(folder / "cache")),
    )


def images(items: Items) -> np.ndarray:
    """(items, frames / 3, 3, size, size) float16: the right ones, by OpenCV from the cache."""
    return np.stack([with_opencv(items.source.sample(entry)) for entry in items.entries])
