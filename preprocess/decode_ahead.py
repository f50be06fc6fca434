"""Studies decoded whole in a process of its own, the next one while the caller works on this one."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cache_schema.memory import HeldPixels, held, one_ahead
from cache_schema.study import Study
from preprocess.findings import REASONS, Finding
from preprocess.series.study_plan import StudyPlan

START = "import sys; sys.path[:] = {path!r}; from preprocess.decode_ahead import serve; serve()"


def plan_digest(plan: StudyPlan, source: Path) -> str:
    """sha256 hex of the paths below the source, sizes and modification times of the study's files: another one if a file
    was changed."""
    files = [(os.path.relpath(path, source), size, mtime) for path, size, mtime in plan.files]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def decoded(plans: Iterable[StudyPlan], report: Callable[[Finding], None]) -> Iterator[Study]:
    """The planned studies in order, all pixels in memory; at most three studies at a time. Close the iterator to end early.

    report: called with every finding. Studies that are refused, or whose decoder crashes or hangs, are left out.
    """
    worker = _Worker()
    ahead = one_ahead(worker.decode, plans)
    try:
        for study, findings in ahead:
            for finding in findings:
                report(finding)
            if study is not None:
                yield study
            del study
    finally:
        worker.close()  # first: the thread may wait for it
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
        study, findings = decode(plan)
        with suppress(BrokenPipeError):
            if study is None:
                pickle.dump((None, findings), answers)
            else:
                held = study.pixels
                assert isinstance(held, HeldPixels)
                pickle.dump((study.record, study.z, study.slice_number, held.seconds, held.plan, findings), answers)
                answers.write(held.pixels.data.cast("B"))
            answers.flush()
