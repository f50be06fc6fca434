"""Studies decoded whole in processes of their own, the next ones while the caller works on this one."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from cache_schema.machine import Machine
from cache_schema.memory import HeldPixels, held, read_ahead
from cache_schema.study import Study
from preprocess.findings import REASONS, Finding
from preprocess.series.study_plan import StudyPlan

MOST_PROCESSES = 8
PROCESS_BYTES = 200 << 20
"""of a decoding process, without its study"""
SHARE = 4
"""a quarter of the free memory is for decoding"""
START = "import sys; sys.path[:] = {path!r}; from preprocess.decode_ahead import serve; serve()"


def plan_digest(plan: StudyPlan, source: Path) -> str:
    """sha256 hex of the paths below the source, sizes and modification times of the study's files: another one if a file
    was changed."""
    files = [(os.path.relpath(path, source), size, mtime) for path, size, mtime in plan.files]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def decoding_processes(largest: int, machine: Machine) -> int:
    """How many processes may decode beside the caller: by its cores, of which one is the caller's, and by its free memory.

    largest: bytes of a study's pixels. Each process has a study, and another one of it waits for the caller.
    """
    each = PROCESS_BYTES + 2 * largest
    return max(1, min(MOST_PROCESSES, machine.cores - 1, machine.memory // (SHARE * each)))


def decoded(
    plans: Iterable[StudyPlan], report: Callable[[Finding], None], processes: int = 1
) -> Generator[Study, None, None]:
    """The planned studies in order, all pixels in memory. Close the iterator to end early.

    Each process has one study at most, and so many wait, beside the one that the caller works on. report: called with every
    finding. Studies that are refused, or whose decoder crashes or hangs, are left out.
    """
    workers = [_Worker() for _ in range(processes)]
    idle = SimpleQueue[_Worker]()
    for worker in workers:
        idle.put(worker)

    def decode(plan: StudyPlan) -> tuple[Study | None, tuple[Finding, ...]]:
        worker = idle.get()
        try:
            return worker.decode(plan)
        finally:
            idle.put(worker)

    ahead = read_ahead(decode, plans, processes)
    try:
        for study, findings in ahead:
            for finding in findings:
                report(finding)
            if study is not None:
                yield study
            del study
    finally:
        for worker in workers:
            worker.close()  # first: the threads may wait for them
        ahead.close()


def decode(plan: StudyPlan) -> tuple[Study | None, tuple[Finding, ...]]:
    """The study with all its pixels in memory, or None, and what there is to say about it. Never raises.

    The process ends if a decoder hangs.
    """
    from preprocess.build.watchdog import STALL_SECONDS, GuardedPixels, deadline
    from preprocess.study_source import open_study

    try:
        started = time.perf_counter()
        with deadline(STALL_SECONDS):
            study, found = open_study(plan)
        study.pixels = pixels = GuardedPixels(study.pixels)
        return held(study, started), (*found, *pixels.findings())
    except Exception as error:
        return None, (Finding.of_error(plan.id, error),)


class _Worker:
    """A process that decodes one study at a time. Started again after it died: a study is tried twice."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._closed = False

    def decode(self, plan: StudyPlan) -> tuple[Study | None, tuple[Finding, ...]]:
        try:
            return self._decoded(plan)
        except ChildProcessError:
            pass
        try:
            return self._decoded(plan)
        except ChildProcessError as error:
            how = f"{REASONS['worker_died']} ({error})"
            return None, (Finding.of_study(plan.id, "refused", "worker_died", how),)

    def _decoded(self, plan: StudyPlan) -> tuple[Study | None, tuple[Finding, ...]]:
        """Raises ChildProcessError if the process ends."""
        process = self._process or self._started()
        if self._closed:
            process.kill()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(plan, process.stdin)
            process.stdin.flush()
            found = pickle.load(process.stdout)
            if found[0] is None:
                return found
            record, z, slice_number, seconds, plan, findings = found
            pixels = np.empty(record.shape, np.uint8)
            _read_into(process.stdout, pixels.data.cast("B"))
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process = None
            raise ChildProcessError(_ended(process.wait())) from None
        return Study(record, z, slice_number, HeldPixels(pixels, seconds, plan)), findings

    def _started(self) -> subprocess.Popen:
        command = [sys.executable, "-c", START.format(path=sys.path)]
        # a session of its own: Ctrl-C is for the caller, which ends it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        return self._process

    def close(self) -> None:
        self._closed = True  # a thread may be about to start another one
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def _read_into(stream: Any, view: memoryview) -> None:
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]


def _ended(status: int) -> str:
    if status == -signal.SIGALRM:
        return "it hung"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def serve() -> None:
    """The process: plans from standard input, studies to standard output, until standard input ends."""
    import cv2

    cv2.setNumThreads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print must not mix with the answers
    while True:
        try:
            plan = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)
        with suppress(BrokenPipeError):
            _send(*decode(plan), answers)


def _send(study: Study | None, findings: tuple[Finding, ...], answers: BinaryIO) -> None:
    """The study's room is free again when this returns."""
    if study is None:
        pickle.dump((None, findings), answers)
    else:
        held = study.pixels
        assert isinstance(held, HeldPixels)
        pickle.dump((study.record, study.z, study.slice_number, held.seconds, held.plan, findings), answers)
        answers.write(held.pixels.data.cast("B"))
    answers.flush()
