"""Peak memory of a process that builds one study, however many slices it has."""

import subprocess
import sys
from pathlib import Path

from dicom_files import picture, write_slice

from preprocess.phantom.generate import write_phantom

SIZE = 256

BUILD = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from mutations import peak_memory_mb
from cache_schema import CacheWriter
from preprocess.series.planning import plan_studies
from preprocess.build.task import StudyTask, build_study
source, cache = map(Path, sys.argv[1:])
CacheWriter(cache)
plan = plan_studies(source)[0][0]
outcome = build_study(StudyTask(plan.id, plan, None, cache, None, "", ""))
assert outcome.refused is None, outcome
print(peak_memory_mb())
"""


def peak_of_a_build(folder: Path, slices: int) -> float:
    """MB that a process needs at most to plan and make one study of `slices` slices of 256 x 256."""
    source = folder / f"source-{slices}"
    for number in range(1, slices + 1):
        write_slice(source / f"{number}.dcm", picture(number % 50, SIZE, SIZE), z=-float(number), number=number)
    ran = subprocess.run(
        [sys.executable, "-c", BUILD.format(paths=sys.path), str(source), str(folder / f"cache-{slices}")],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ran.stdout)


def peaks_of_predictions(folder: Path, models: Path, few: int, many: int) -> tuple[float, float]:
    """MB that `trainer predict` and its decoding process each need at most, for so many studies; the larger of both.

    models: the out= of a plan of tiny networks. The studies have 30 slices of 512 x 512.
    """
    write_phantom(folder / "all", many, slices=30, segmented=0, syntax="explicit", seed=9, progress=False)
    first = folder / "few"
    first.mkdir()
    for study in sorted((folder / "all/train_images").iterdir())[:few]:
        (first / study.name).symlink_to(study)
    return _peak_of_a_prediction(first, models), _peak_of_a_prediction(folder / "all/train_images", models)


def _peak_of_a_prediction(source: Path, models: Path) -> float:
    words = [f"source={source}", f"models={models}", f"out={source.parent / f'out-{source.name}'}"]
    code = (
        f"import resource, sys; sys.path[:0] = {sys.path!r}; from trainer.predict import main; status = main({words!r}); "
        "who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN); "
        "print(max(resource.getrusage(each).ru_maxrss for each in who) / 1024, file=sys.stderr); sys.exit(status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(ran.stderr.splitlines()[-1])
