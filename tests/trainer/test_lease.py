"""One holder at a time: living, dead, on another machine, and a child under its parent's lease."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from trainer.runs import lease
from trainer.runs.lease import INHERITED, LeaseTaken, hold, holder, lease_file


def hold_for_ever(path: Path, ready) -> None:
    with hold(path, lost=never):
        ready.set()
        time.sleep(60)


def never() -> None:
    raise AssertionError("the lease was lost")


def on_another_machine(path: Path, silent: float) -> None:
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"machine": "elsewhere/boot/pid"}))
    os.utime(path, (time.time() - silent,) * 2)


def test_a_lease_is_held_by_one_living_process_and_taken_over_from_a_dead_one(tmp_path):
    path = lease_file(tmp_path, "bbox-01B/fold0-seed1")
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=hold_for_ever, args=(path, ready))
    other.start()
    try:
        assert ready.wait(10)
        with pytest.raises(LeaseTaken, match=f"is being made by process {other.pid} on"), hold(path, never):
            pass
        assert str(other.pid) in holder(path)
    finally:
        other.kill()
        other.join()
    with hold(path, never):
        assert str(os.getpid()) in holder(path)
    assert holder(path) is None and not path.exists()


def test_a_holder_on_another_machine_lives_as_long_as_its_heartbeat(tmp_path):
    path = lease_file(tmp_path, "a")
    with hold(path, never):
        pass
    path.write_text(json.dumps({"token": "t", "machine": "elsewhere/boot/pid", "pid": 7, "born": "1"}))
    with pytest.raises(LeaseTaken, match="process 7 on elsewhere"), hold(path, never):
        pass
    os.utime(path, (time.time() - lease.SILENCE - 1,) * 2)
    with hold(path, never):
        pass


def test_a_holder_beats_and_learns_that_it_was_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    path, lost = lease_file(tmp_path, "a"), []
    with hold(path, lambda: lost.append(True)):
        os.utime(path, (0, 0))
        wait_for(lambda: path.stat().st_mtime > 0)
        on_another_machine(path, silent=lease.SILENCE + 1)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "another"}))
        wait_for(lambda: lost)
    assert path.exists(), "the other's lease is not removed"


def test_a_child_works_under_its_parents_lease(tmp_path, monkeypatch):
    path = lease_file(tmp_path, "a")
    with hold(path, never) as token:
        monkeypatch.setenv(INHERITED, token)
        with hold(path, never) as same:
            assert same == token
        assert path.exists(), "it belongs to the parent"


def wait_for(condition, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_file_system_that_does_not_answer_for_a_while_gives_the_lease_to_nobody(tmp_path, monkeypatch):
    path, lost = lease_file(tmp_path, "a"), []
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    with hold(path, lambda: lost.append(1)):
        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_text", _stale)
            assert "its lease cannot be read" in lease._living(path)
            time.sleep(0.1)
        assert not lost
        path.unlink()
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lost == [1]


def _stale(self):
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"token": "t", "machine": 3, "pid": 1, "born": "1"}',
        '{"token": "t", "machine": "m", "pid": "\\u0000", "born": null}',
        '{"token": ["t"], "machine": "m", "pid": 1, "born": null}',
        '{"token": "t", "machine": "m", "pid": 1, "born": "1", "child": [2]}',
    ],
)
def test_a_lease_that_no_holder_wrote_is_taken(text, tmp_path):
    path = lease_file(tmp_path, "bbox-01B/fold0-seed1")
    path.parent.mkdir()
    path.write_text(text)
    assert holder(path) is None
    with hold(path, never) as token:
        assert json.loads(path.read_text())["token"] == token
