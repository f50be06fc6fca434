"""`python -m trainer.bundle.arrival BUNDLE source=SOURCE out=DIR ...`: the check on arrival, then `trainer predict`.

Started by a bundle's predict.py with the bundle's packages in front of the machine's own.
"""

import sys
from importlib import import_module, metadata

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted: run the same command to continue")
    try:
        import_module("cache_schema")
    except Exception as error:  # whatever a package does on import
        print(f"error: this machine's packages do not go together ({type(error).__name__}: {error})", file=sys.stderr)
        sys.exit(1)

import json
import py_compile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache_schema.documents import write_whole
from cache_schema.errors import CspineError, UsageError
from trainer.process.command import serve
from trainer.process.ending import leave

MANIFEST, MODELS, IMAGE = "manifest.json", "MODELS.cspine", "image.npy"
INTERRUPTED = "interrupted: run the same command to continue"
CHECKED = "checked.json"
"""in the folder of unpacked packages: the machine's own versions with which all was well"""
IMPORTED = (  # also what is imported later: by the first study, or in another process
    "trainer.predict",
    "trainer.predictor.predictor",
    "trainer.report.card",
    "preprocess.decode_ahead",
    "preprocess.decoders",
    "preprocess.build.watchdog",
    "preprocess.headers.opened",
    "preprocess.pixels.decoder_cross_check",
    "preprocess.pixels.same_position",
    "preprocess.pixels.study_pixels",
    "preprocess.series.planning",
    "preprocess.study_source",
)
GREY_LEVELS = 1.0
"""by which an image may differ: another processor may round another way"""
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
AS_FILE = f"make it again with python={HERE} target=FILE, FILE being what `pip freeze` prints here"


class NotAsMade(CspineError):
    """This machine answers differently than the one the bundle was made for, or not at all."""

    exit_status = 1


def main(words: list[str]) -> int:
    bundle, given = Path(words[0]), words[1:]
    status = serve([words[0]], "", lambda words: check_arrival(bundle, given), INTERRUPTED)
    if status:
        return status
    from trainer.predict import main as predict

    models = [] if any(word.lstrip("-").startswith("models=") for word in given) else [f"models={bundle / MODELS}"]
    return predict([*given, *models])


def check_arrival(bundle: Path, given: Collection[str] = ()) -> None:
    """Imports and an image, once for the versions that are there. Raises NotAsMade.

    given: settings of the prediction. Raises UsageError for one that a bundle cannot serve.
    """
    import trainer

    if "keep=true" in {word.lstrip("-") for word in given}:
        raise UsageError("keep=true builds a cache, and a bundle brings no Dask", do="leave keep=true out")

    packages = Path(next(iter(trainer.__path__))).parent
    manifest = json.loads((bundle / MANIFEST).read_bytes())["content"]
    versions = {name: metadata.version(name) for name in manifest["own"]}
    checked = packages / CHECKED
    with suppress(FileNotFoundError, ValueError):
        if json.loads(checked.read_bytes()) == versions:
            return
    check_imports()
    check_image(bundle / IMAGE)
    keep_bytecode(packages)
    write_whole(checked, json.dumps(versions).encode())


def check_imports() -> None:
    for name in IMPORTED:
        try:
            import_module(name)
        except Exception as error:  # whatever a package does on import
            what = f"{name} cannot be imported ({type(error).__name__}: {error})"
            raise NotAsMade(what, do=AS_FILE) from None


def check_image(kept: Path) -> None:
    import cv2
    import numpy as np

    from trainer.data.image import STD

    expected, found = np.load(kept, allow_pickle=False), arrival_image()
    differs = float(np.abs(np.float32(found) - np.float32(expected)).max() * STD.max())
    if not differs <= GREY_LEVELS:
        made_by = f"OpenCV {cv2.__version__}, NumPy {np.__version__}"
        raise NotAsMade(f"an image differs by {differs:.1f} grey levels from the bundle's ({made_by})", do=AS_FILE)


def arrival_image() -> Any:
    """(2, 3, 64, 64) float16: an augmented training item of made-up slices, by the code that makes the networks' input."""
    import numpy as np

    from trainer.data.augment import augment_params
    from trainer.data.image import make_image
    from trainer.data.items import Item
    from trainer.data.source import assemble, stretch
    from trainer.settings.settings import AugmentSettings

    z, y, x = np.ogrid[:6, :90, :80]
    pixels = (x * y // 16 + 7 * z + x // 3).astype(np.uint8) // 2 + 60
    low, high = pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))
    params = augment_params(0, 0, Item(0, "arrival", 0, 6, 200), AugmentSettings(), 64)
    return make_image(assemble(stretch(pixels, low, high, 1.1), params), 64)


def keep_bytecode(packages: Path) -> None:
    """Of what is imported from the bundle's packages: later processes and commands need not compile it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and Path(file).is_relative_to(packages):
            with suppress(py_compile.PyCompileError, OSError):
                py_compile.compile(file, doraise=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
