"""What several of the files here ask for."""

import shutil

import pytest
from tiny_rsna import write_rsna

from preprocess.build.build_cache import build_cache
from preprocess.build.dask_pool import local_cluster


@pytest.fixture(scope="module")
def scheduler():
    """The address of a running Dask scheduler with two workers."""
    with local_cluster(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_rsna(tmp_path_factory.mktemp("made") / "rsna")


@pytest.fixture(scope="module")
def built(made, tmp_path_factory, scheduler):
    cache = tmp_path_factory.mktemp("built") / "cache"
    assert build_cache(made, cache, folds=2, scheduler=scheduler).exit_status == 0
    return cache


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made, tmp_path / "rsna")


@pytest.fixture
def build(scheduler, tmp_path, source):
    """Builds `source` into tmp_path/cache on the running workers; keeps what it told."""

    def run(**options):
        run.told = []
        settings = {"folds": 2, "scheduler": scheduler, "tell": run.told.append} | options
        return build_cache(source, tmp_path / "cache", **settings)

    return run
