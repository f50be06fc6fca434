"""A task in a process of its own: what comes back from it, how it says that it died, and that nothing is left of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import deaths
import numpy as np
import pytest

from preprocess.build.isolated_task import START, Died, _End, _how_it_died, run_alone

PATIENCE_SECONDS = 20
SLEEPER = """
import os, resource, time
import cloudpickle
from preprocess.build.isolated_task import run_alone
def task(seconds):
    print(os.getpid(), flush=True)
    {body}
print(run_alone(cloudpickle.dumps((task, 600)), None, os.environ))
"""


def alone(function, task=None, limit=None):
    return run_alone(cloudpickle.dumps((function, task)), limit, os.environ)


def isolated_processes() -> list[int]:
    """Below this process; other tests may have theirs."""
    parents, found = {}, []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
                if START.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def has_ended(pid: int) -> bool:
    """Waits a little for it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def test_a_result_of_any_size_comes_back():
    result = alone(lambda size: np.arange(size), 10_000_000)
    assert result.nbytes == 80_000_000 and result[-1] == 9_999_999


def test_what_a_task_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        alone(lambda task: 1 // 0)


def test_a_result_that_cannot_be_sent_is_an_error_and_no_death():
    with pytest.raises(TypeError, match="cannot be pickled"):
        alone(lambda task: (thing for thing in ()))


@pytest.mark.parametrize("said", deaths.WAYS)
def test_a_death_says_how(said):
    died = alone(deaths.task, said)
    assert isinstance(died, Died) and said in died.message and "\n" not in died.message


def test_a_death_within_a_limited_address_space_tells_the_limit():
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))" + SLEEPER.format(
        body="os.abort()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "died of SIGABRT" in ran.stdout and "address space limited to 3221 MB" in ran.stdout


def test_a_task_over_its_memory_limit_is_ended_and_tells_limit_and_peak():
    held = bytearray(700 << 20)  # a child begins with the peak of the one that starts it, which is not its own
    died = alone(lambda size: len(bytearray(size)) and time.sleep(60), 300 << 20, limit=200_000_000)
    peak = int(died.message.split("peak ")[1].split(" MB")[0])
    assert died.message.startswith("ran out of memory") and "limit 200 MB" in died.message
    assert 200 <= peak < 400 < len(held) / 1e6


def test_mapped_files_and_memory_that_is_not_touched_do_not_count(tmp_path):
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 32)

    def task(path):
        import mmap

        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, mmap.mmap(-1, 1 << 32) as untouched:
            return len(mapped) + len(untouched)

    assert alone(task, tmp_path / "large", limit=200_000_000) == 2 << 32


def test_a_process_that_the_kernel_ends_for_want_of_memory_is_told_from_one_that_is_killed():
    killed, starved = (
        _how_it_died(_End(-signal.SIGKILL, 9 * 10**8, False, for_memory), None, 0.0) for for_memory in (0, 1)
    )
    assert killed.startswith("died of SIGKILL") and "peak 900 MB" in killed
    assert starved.startswith("ran out of memory") and "peak 900 MB, limit" in starved


@pytest.mark.parametrize(
    "end, body",
    [
        (signal.SIGKILL, "sum(range(10**12))"),  # in C, so that no thread of its own could end it
        (signal.SIGINT, "time.sleep(seconds)"),
    ],
)
def test_a_lone_process_ends_with_the_one_that_waits_for_it(end, body):
    waits = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        pid = int(waits.stdout.readline())
        assert pid in isolated_processes()
        waits.send_signal(end)
        assert waits.wait(PATIENCE_SECONDS) and has_ended(pid)
    finally:
        waits.kill()
        waits.communicate()


def test_a_task_that_nobody_waits_for_any_more_is_ended():
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        run_alone(cloudpickle.dumps((time.sleep, 600)), None, os.environ, lambda: time.monotonic() < began + 0.5)
    assert not isolated_processes()
