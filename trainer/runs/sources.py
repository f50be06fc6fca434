"""What a run is made from besides its cache: study boxes, pseudo labels and a backbone. Their files and digests. Without torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema.columns import FULL_FRAME, STUDY_BOX
from cache_schema.tables import read_table, table_meta
from trainer.runs.file_names import MODEL_FILE
from trainer.runs.weights import weights_digest
from trainer.settings.settings import SOURCES


def source_files(values: Mapping[str, Any]) -> dict[str, Path]:
    """name -> file of each source that is given: a table, or a backbone's weights. values: settings by name."""
    given = {name: str(values[name]) for name in SOURCES if values.get(name) is not None}
    given = {name: path for name, path in given.items() if (name, path) != ("boxes", "cache")}
    return {name: Path(path, MODEL_FILE) if name == "backbone" else Path(path) for name, path in given.items()}


def source_digest(name: str, file: Path) -> str | None:
    """A source's digest, as in `Inputs.training_digests`; None for boxes without a column `source`. Raises CspineError."""
    if name == "backbone":
        return weights_digest(file)
    if name == "pseudo":
        return str(table_meta(file)["digest"])
    table = read_table(file)
    return boxes_digest(table.assign(found=table["source"] != FULL_FRAME)) if "source" in table.columns else None


def digests_of_missing(values: Mapping[str, Any], recorded: Mapping[str, str]) -> dict[str, str]:
    """The recorded digests of sources whose files no longer exist."""
    missing = [name for name, file in source_files(values).items() if not file.exists()]
    return {name: recorded[name] for name in missing if name in recorded}


def boxes_digest(table: pd.DataFrame) -> str:
    """table: id, x0, y0, x1, y1, z_from, z_to, found."""
    return digest_rows(table[["id", *STUDY_BOX, "found"]].itertuples(index=False))


def digest_rows(rows: Iterable[tuple]) -> str:
    """sha256 hex of rows of plain values. Numbers of equal value are equal, whatever their dtype: 0, 0.0 and Int8's 0."""
    text = "\n".join(json.dumps([_plain(value) for value in row]) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> int | float | str | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() else number
