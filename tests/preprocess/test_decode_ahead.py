"""Studies decoded in a process of its own."""

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from dicom_files import plan_one, write_series

from cache_schema.machine import Machine
from preprocess import plan_studies
from preprocess.decode_ahead import _Worker, decoded, decoding_processes
from preprocess.phantom.generate import write_phantom


def test_a_study_whose_process_died_is_tried_again_and_nothing_starts_after_the_end(tmp_path):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    worker = _Worker()
    worker._started().kill()
    study, _ = worker.decode(plan)
    assert study is not None and study.read(0, 1).shape == (1, plan.rows, plan.columns)
    worker.close()
    study, (finding,) = worker.decode(plan)
    assert study is None and worker._process is None
    assert finding.reason == "worker_died" and finding.message.endswith("(by SIGKILL)")


def numbered(plan, count):
    return [replace(plan, id=f"{number}") for number in range(count)]


class EndsWhoReadsIt:
    """In place of a plan: the process that unpickles it ends, as it does of a decoder that crashes."""

    id = "deadly"

    def __reduce__(self):
        return os._exit, (9,)


def alive():
    """Decoding processes of this process."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(os.getpid()) and b"decode_ahead" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_several_processes_give_the_studies_in_their_order_and_a_bounded_number_ahead(tmp_path):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    asked, findings = [], []

    def plans():
        for each in numbered(plan, 9):
            asked.append(each.id)
            yield each

    studies = decoded(plans(), findings.append, 3)
    for number, study in enumerate(studies):
        assert study.id == f"{number}" and len(asked) <= number + 4
        assert len(alive()) == 3
    assert number == 8 and not findings and not alive()


@pytest.mark.check
def test_of_several_processes_one_that_dies_costs_one_study_and_none_is_left(tmp_path):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    first, second, *others = numbered(plan, 5)
    findings = []
    studies = decoded([first, EndsWhoReadsIt(), second, *others], findings.append, 2)
    assert [study.id for study in studies] == [f"{number}" for number in range(5)]
    assert [(each.id, each.reason) for each in findings] == [("deadly", "worker_died")]
    assert findings[0].message.endswith("(with exit status 9)")
    early = decoded(numbered(plan, 9), findings.append, 3)
    assert next(early).id == "0"
    early.close()
    assert not alive() and len(findings) == 1


def test_as_many_processes_decode_as_cores_and_memory_have_room_for():
    study = 352 * 512 * 512

    def processes(cores, gib):
        return decoding_processes(study, Machine(cores, int(gib * 2**30)))

    assert [processes(cores, 29) for cores in (1, 2, 4, 96)] == [1, 1, 3, 8]
    assert [processes(96, gib) for gib in (0.5, 4, 8)] == [1, 2, 5]


@pytest.mark.check
def test_memory_stays_flat_over_many_studies(tmp_path):
    write_phantom(tmp_path, studies=1, slices=60, segmented=0, syntax="explicit", seed=3, workers=1, progress=False)
    (plan,), _ = plan_studies(tmp_path)

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10

    size = plan.rows * plan.columns * len(plan.slices)
    for number, _ in enumerate(decoded(numbered(plan, 24), lambda finding: None, 2)):
        if number == 4:
            Path("/proc/self/clear_refs").write_text("5")
            before = peak()
    assert peak() - before < 3 * size
