"""What a bundle weighs, and how long a machine needs from its first sight of it to the first answer.

Networks are tiny here, and the study is a phantom of 60 slices: the seconds are those of checking, unpacking and importing, which do not
depend on the models' size, but for their reading.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.predictions import packed_models, seconds_to_an_answer
from benchmarks.rounds import machine, print_and_keep
from preprocess.phantom.generate import write_phantom

TINY = {"model.name": "test_efficientnet_gn", "model.pretrained": False, "model.chunk": 8}
DATA = {"data.size": 64, "data.frames": 12, "data.stride": 3, "data.eval_stride": 8}
STEPS = {"train.epochs": 1, "train.batch": 2, "train.micro_batch": 2, "train.evaluate_every": 0}
TARGETS = ("here", "kaggle", "bare")


def listed_here(folder: Path) -> Path:
    """What `pip freeze` prints in this environment."""
    path = folder / "here.txt"
    path.write_text("".join(f"{dist.name}=={dist.version}\n" for dist in metadata.distributions()))
    return path


def made(folder: Path, models: Path, target: str) -> tuple[Path, float]:
    """(the bundle, its MB without the models)."""
    bundle = folder / target
    name = str(listed_here(folder)) if target == "here" else target
    command = [sys.executable, "-m", "trainer.bundle", f"out={bundle}", f"models={models}", f"target={name}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sizes = {path.name: path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    return bundle, (sum(sizes.values()) - sizes["MODELS.cspine"]) / 1e6


def report(targets: list[str], python: str) -> Iterator[str]:
    yield f"{machine()}\nTiny networks; one phantom study of 60 slices; by the Python of `here` or the one given\n"
    with tempfile.TemporaryDirectory(prefix="bench-bundle-") as name:
        folder = Path(name)
        models = packed_models(folder, {**TINY, **DATA, **STEPS})
        write_phantom(folder / "scans", 1, slices=60, segmented=0, syntax="sv1", progress=False)
        for target in targets:
            bundle, megabytes = made(folder, models, target)
            line = f"{target:7} {megabytes:8.1f} MB without models"
            if target == "here" or python != sys.executable:
                source, out = folder / "scans/train_images", folder / f"out-{target}"
                command = [python, bundle / "predict.py", f"source={source}", f"out={out}", "report=false"]
                first, again = (seconds_to_an_answer(command, out) for _ in range(2))
                line += f"; first answer after {first:.1f} s, of a later command after {again:.1f} s"
            yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=["here", "kaggle"], help=", ".join(TARGETS))
    parser.add_argument("--python", default=sys.executable, help="of an environment that is like the target")
    parser.add_argument("--keep", action="store_true", help="the results in benchmarks/results")
    given = parser.parse_args()
    print_and_keep(report(given.targets, given.python), "bundle", given.keep)


if __name__ == "__main__":
    main()
