"""What others may import and call: names of both packages, and the exit statuses of the command."""

import subprocess
import sys

import pytest

import cache_schema
import preprocess
from preprocess.build.build_cache import BuildResult
from preprocess.cli import INTERRUPTED, main

PUBLIC = {
    cache_schema: {
        *("LEVELS", "TARGETS", "Cache", "CacheError", "CacheWriter", "CspineError", "StaleStudy", "Study", "StudyBox"),
        *("StudyRecord", "StudyRefused", "UsageError", "read_table", "write_table"),
    },
    preprocess: {
        *("build_cache", "crop_cache", "open_study", "plan_studies", "replace_labels", "segmentation_folder"),
        *("studies", "write_phantom"),
    },
}


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_public_names_are_those_of_the_contract(package):
    assert set(package.__all__) == PUBLIC[package] and all(hasattr(package, name) for name in PUBLIC[package])
    assert not hasattr(package, "no_such_name")


def test_importing_preprocess_loads_neither_decoders_nor_dask():
    code = "import sys, preprocess; sys.exit(any(m in sys.modules for m in ('pydicom', 'cv2', 'distributed', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_carry_the_exit_status_of_the_contract():
    errors = ("CspineError", "UsageError", "StudyRefused", "StaleStudy", "CacheError")
    assert [getattr(cache_schema, name).exit_status for name in errors] == [2, 2, 2, 2, 1]
    assert INTERRUPTED == 130 and "0 all well, 1 a check failed, 2 usage, 3 some studies refused, 130" in main.__doc__


@pytest.mark.parametrize(
    ("published", "refused", "max_refused", "status"),
    [(2, 0, None, 0), (2, 1, None, 3), (2, 1, 1, 3), (2, 2, 1, 1), (0, 1, None, 2), (0, 0, None, 0)],
)
def test_a_build_exits_with_the_status_of_the_contract(published, refused, max_refused, status):
    assert BuildResult(published, 0, refused, published, 0, max_refused).exit_status == status
