"""Where libraries may put temporary files while a prediction runs: inside OUT, and nowhere else."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = ".temporary"
CACHES = {"MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache", "CUDA_CACHE_PATH": "cuda"}
"""variable -> folder of fonts that were found, of any library's, and of compiled kernels; what the user sets stays"""


@contextmanager
def inside(out: Path) -> Iterator[None]:
    """For this process and those that it starts. What a killed command left goes, too."""
    folder = out.absolute() / FOLDER
    places = {name: str(folder / below) for name, below in CACHES.items() if not os.environ.get(name)}
    before = {name: os.environ.get(name) for name in (*places, "TMPDIR")}
    kept, tempfile.tempdir = tempfile.tempdir, None  # else what it once found would go on to be used
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(places, TMPDIR=str(folder))
    try:
        yield
    finally:
        tempfile.tempdir = kept
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
