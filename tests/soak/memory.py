"""Peak memory of a process that builds one study, however many slices it has."""

import subprocess
import sys
from pathlib import Path

from dicom_files import picture, write_slice

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
