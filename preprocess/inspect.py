"""Summaries of a cache or a study, as text or JSON."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.store_path import Place

SPACING_EDGES = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, np.inf)
BOX_EDGES = (0, 128, 192, 256, 320, 384, 512, np.inf)


def about_cache(path: str | Place) -> dict[str, Any]:
    """Studies, slices, bytes, how often each syntax, decoder and flag occurs, histograms, labels. JSON's types only."""
    cache = Cache(path)
    index, labels = cache.index, cache.labels
    stored = int(index["bytes"].sum())
    box_side = pd.concat([index["x1"] - index["x0"], index["y1"] - index["y0"]], axis=1).max(axis=1).dropna()
    about: dict[str, Any] = {
        "studies": len(index),
        "slices": int(index["slices"].sum()),
        "bytes": stored,
        "compression": round(int(index["pixels"].sum()) / stored, 2) if stored else None,
        "segmented": int(index["segmentation_digest"].notna().sum()),
        "boxed": len(box_side),
        "sizes": _counts(index["rows"].astype(str) + "x" + index["columns"].astype(str)),
        "transfer_syntaxes": _counts(index["transfer_syntax"]),
        "decoders": _counts(index["decoder"]),
        "slice_spacing_mm": _histogram(index["slice_spacing_median"].dropna(), SPACING_EDGES),
        "box_side_pixels": _histogram(box_side, BOX_EDGES),
        "flags": _counts(index["flags"].str.split().explode().dropna()),
        "pixel_hash": cache.pixel_hash,
    }
    if labels is not None:
        about["labelled"] = int(labels[list(TARGETS)].notna().any(axis=1).sum())
        known = labels[list(TARGETS)].sum(min_count=1)
        about["fractured"] = {target: None if pd.isna(known[target]) else int(known[target]) for target in TARGETS}
        about["folds"] = _counts(labels["fold"].dropna().astype(str))
    return about


def about_study(path: str | Place, id: str) -> dict[str, Any]:
    """A study's record, as JSON has it."""
    return Cache(path).record(id).model_dump(mode="json")


def as_text(about: dict[str, Any]) -> str:
    """One line a fact."""
    width = max(map(len, about))
    return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in about.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(map(_plain, value)) or "-"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().sort_index().items()}


def _histogram(values: pd.Series, edges: tuple[float, ...]) -> dict[str, int]:
    counts = np.histogram(values.to_numpy(float), edges)[0]
    names = [f"{low:g} to {high:g}" if high < np.inf else f"{low:g} or more" for low, high in pairwise(edges)]
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
