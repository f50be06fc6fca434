"""What several of the files here ask for."""

import pytest

from preprocess.build.cluster import local_cluster


@pytest.fixture(scope="module")
def scheduler():
    """The address of a running Dask scheduler with two workers."""
    with local_cluster(2) as cluster:
        yield cluster.scheduler_address
