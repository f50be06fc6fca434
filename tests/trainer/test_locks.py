"""One process at a time in a folder, with flock and without, and leases on top of it."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from planting import planted

from trainer.process.command import warn_once
from trainer.runs.lease import LeaseTaken, hold, holder, lease_file, share
from trainer.runs.locks import ABANDONED, EXCLUSIVE, locked

WITHOUT = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]
COUNTED = 40


@pytest.fixture(autouse=True)
def nothing_said_before():
    warn_once.cache_clear()


def count(folder: Path, reason: int) -> None:
    with planted([], 0, reason, locks=True):
        for _ in range(COUNTED):
            with locked(folder):
                number = int((folder / "count").read_text())
                time.sleep(0.0005)
                (folder / "count").write_text(str(number + 1))


@pytest.mark.parametrize("reason", WITHOUT)
def test_without_flock_no_two_processes_are_in_a_folder_at_once_and_one_line_names_it(reason, tmp_path, capfd):
    (tmp_path / "count").write_text("0")
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=count, args=(tmp_path, reason)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert (tmp_path / "count").read_text() == str(4 * COUNTED)
    said = capfd.readouterr().err.splitlines()
    line = f"{tmp_path}: the file system has no flock ({os.strerror(reason)}); an exclusive file replaces it"
    assert said == [line] * 4, "once a process"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "count"]


def test_a_lease_has_one_holder_without_flock(tmp_path, capfd):
    path = lease_file(tmp_path, "bbox-01B/fold0-seed1")
    with planted([], 0, errno.ENOSYS, locks=True), hold(path, lambda: None):
        assert str(os.getpid()) in holder(path)
        with pytest.raises(LeaseTaken, match="is being made by process"), hold(path, lambda: None):
            pass
    assert not path.exists() and capfd.readouterr().err.count("no flock") == 1


def test_an_exclusive_file_of_a_dead_process_is_taken_over(tmp_path):
    dead = tmp_path / EXCLUSIVE
    dead.touch()
    os.utime(dead, (time.time() - ABANDONED - 1,) * 2)
    with planted([], 0, errno.ENOSYS, locks=True), locked(tmp_path):
        assert time.time() - dead.stat().st_mtime < ABANDONED
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("reason", [errno.EIO, errno.ESTALE])
def test_what_else_a_lock_meets_is_said_by_whoever_asked(reason, tmp_path):
    with planted([], 0, reason, locks=True), pytest.raises(OSError) as error, locked(tmp_path):
        pass
    assert error.value.errno == reason


def test_a_damaged_lease_is_nobody_s(tmp_path):
    path = lease_file(tmp_path, "a")
    path.parent.mkdir()
    for damaged in ("[1]", '{"token": "t"}', "\x00", '{"token": 1, "machine": 2, "pid": 3, "born": 4}', '"text"'):
        path.write_text(damaged)
        assert holder(path) is None
    path.write_bytes(b"\xff\xfe")
    with hold(path, lambda: None):
        assert str(os.getpid()) in holder(path)


def test_a_lease_lives_as_long_as_a_process_that_shares_it(tmp_path):
    path, fork = lease_file(tmp_path, "a"), multiprocessing.get_context("fork")
    going_on = fork.Process(target=time.sleep, args=(60,))
    going_on.start()
    holds = fork.Process(target=hold_and_die, args=(path, going_on.pid))
    holds.start()
    holds.join(20)
    assert f"process {going_on.pid} on" in holder(path), "what it began goes on for a while"
    going_on.kill()
    going_on.join()
    assert holder(path) is None


def hold_and_die(path: Path, pid: int) -> None:
    with hold(path, lambda: None) as token:
        share(path, token, pid)
        os.kill(os.getpid(), 9)
