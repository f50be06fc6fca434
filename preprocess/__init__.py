"""DICOM and NIfTI -> Studies and caches of them. This list is the public API.

Importing it costs nothing: what is heavy (pydicom, decoders, Dask) loads when a name is first used.
"""

from importlib import import_module
from typing import Any

from preprocess.study_source import open_study, segmentation_folder, studies

__all__ = [
    "build_cache",
    "crop_cache",
    "open_study",
    "plan_studies",
    "replace_labels",
    "segmentation_folder",
    "studies",
    "write_phantom",
]

_MODULES = {
    "build_cache": "preprocess.build.build_cache",
    "crop_cache": "preprocess.crop",
    "plan_studies": "preprocess.series.planning",
    "replace_labels": "preprocess.labels",
    "write_phantom": "preprocess.phantom.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'preprocess' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
