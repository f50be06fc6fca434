"""A few of each of the trials that `make soak` does by the hundred."""

import pytest
from hypothesis.stateful import run_state_machine_as_test
from kills import kill_builds
from machine import SourceAndCache
from memory import peak_of_a_build
from mutations import build_mutations
from soak import machine_settings
from tiny_rsna import write_rsna


def test_whatever_happens_to_a_source_the_next_build_makes_a_cache_of_it(scheduler):
    class Machine(SourceAndCache):
        pass

    Machine.scheduler = scheduler
    run_state_machine_as_test(Machine, settings=machine_settings(runs=2, steps=10))


def test_a_build_killed_without_its_workers_leaves_whole_studies_and_ends_with_the_same_bytes(scheduler, tmp_path):
    done = kill_builds(write_rsna(tmp_path / "rsna"), tmp_path / "kills", scheduler, count=1, seed=1)
    assert done.kills and not done.not_whole and not done.differing


def test_mutated_files_are_kept_or_refused_and_never_stop_a_run(scheduler, tmp_path):
    done = build_mutations(tmp_path, scheduler, count=40)
    assert done.files == 40 and done.kept and done.refused
    assert not done.unexplained and not done.workers_died
    assert done.slowest_batch_seconds < 60 and done.largest_worker_mb < 1024


@pytest.mark.check
def test_the_memory_of_a_build_does_not_grow_with_the_slices(tmp_path):
    few, many = peak_of_a_build(tmp_path, 40), peak_of_a_build(tmp_path, 400)
    assert many < 1.1 * few
