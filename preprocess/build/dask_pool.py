"""Many independent tasks on Dask: local processes of one thread each, or the workers of a running scheduler."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from cache_schema.errors import UsageError
from cache_schema.machine import this_machine
from preprocess.build.isolated_task import Died, run_alone, run_alone_on_worker
from preprocess.headers.packed import pack, unpack

CONNECT_SECONDS = 20
IGNORE_SIGINT = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""a terminal sends Ctrl-C to every process; workers are stopped by the one that started them, without tracebacks"""
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
    "MALLOC_ARENA_MAX": 1,
    "MALLOC_MMAP_THRESHOLD_": 1 << 26,
    "MALLOC_TRIM_THRESHOLD_": 1 << 27,
    "MALLOC_TOP_PAD_": 1 << 24,
}
"""keeps glibc from giving buffers of a slice or a chunk back to the system: touching them again costs more than reading a
file into them"""
TASKS_A_THREAD = 2
"""one under way, and one beside it, so that a thread need not wait until Dask has brought it the next"""
POLL_SECONDS, RESPAWN_SECONDS, NO_WORKER_SECONDS = 2, 30, 120
"""how often to count workers, when to start a missing local one, and when to give up without any. Dask restarts dead
local workers, but may miss one on a busy machine"""
DASK_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # what is lost with a worker is tried again alone
    # a local worker that died and is just being started again would be given up if it had died so long before as well
    "distributed.deploy.lost-worker-timeout": "1000 days",
    # the scheduler would keep the last thousand messages to each worker, tasks and all
    "distributed.admin.low-level-log-length": 10,
}
ISOLATED_TRIES = 3
"""a process alone dies without its worker; where the worker is lost all the same, as machines are, it was not tried"""
LOST = object()
"""in place of the result of a task that was lost with its worker"""


def local_cluster(workers: int) -> Any:
    """A Dask cluster of so many processes of one thread each, on this machine only."""
    import dask
    from distributed import LocalCluster

    # Dask looks at every thread's stack each hundredth of a second, for a dashboard page that is not used here
    settings = {"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT, "distributed.worker.profile.enabled": False}
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            preload=[IGNORE_SIGINT],
        )


def _run_packed(function: Callable[[Any], Any], task: bytes) -> Any:
    return function(unpack(task))


def check_address(scheduler: str | None) -> None:
    """Raises UsageError for what is no scheduler's address, which Dask would try for a long time."""
    if scheduler is not None and "://" not in scheduler:
        raise UsageError("is not an address", where=f"--scheduler {scheduler}", expected="tcp://HOST:PORT")


class Pool:
    """Starts its workers with the first task and stops those it started at the end.

    Decoders hold the GIL: local workers are processes with one thread each. A dying worker takes few tasks with it: the one
    under way, the one that waits beside it, and a result not fetched yet. A task that was lost so is tried once more at the
    end, alone, in a process that nothing else depends on: a child of this process, or of a worker of someone else's scheduler.
    Only that process says what is the task's own fault.
    """

    def __init__(self, workers: int | None, scheduler: str | None, tell: Callable[[str], None]):
        self._workers, self._scheduler, self._tell = workers, scheduler, tell
        self._stack = ExitStack()
        self._client: Any = None
        self._cluster: Any = None
        self._memory_limit: int | None = None

    def __enter__(self) -> "Pool":
        self._interrupted = False
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._interrupt)
            self._stack.callback(signal.signal, signal.SIGINT, before)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True  # Dask may swallow the exception
        # a question to the scheduler that was being put is dropped; the user need not hear of its coroutine
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise KeyboardInterrupt

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result) as they come; the result is `Died` where its process died though alone."""
        lost = []
        for number, task, result in self._together(function, tasks):
            if result is LOST:
                lost.append((number, task))
            else:
                yield number, result
        if lost:
            self._tell(f"{len(lost)} tasks lost with workers that died; trying each once more, alone")
        for number, task in lost:
            yield number, self._alone(function, task)
        if self._interrupted:
            raise KeyboardInterrupt

    def _alone(self, function: Callable[[Any], Any], task: Any) -> Any:
        import cloudpickle

        work = cloudpickle.dumps((function, task))
        if not self._scheduler:
            environment: dict[str, object] = {**os.environ, **WORKER_ENVIRONMENT}
            return run_alone(work, self._memory_limit, environment)
        for _ in range(ISOLATED_TRIES):
            ((_, _, result),) = self._together(run_alone_on_worker, [work])
            if result is not LOST:
                return result
        return Died(f"was lost with its worker {ISOLATED_TRIES} times, though nothing else was running")

    def _together(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any, Any]]:
        """(number of the task, the task, its result or LOST) as they come."""
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker

        client, waiting = self._started(), iter(enumerate(tasks))
        finished: SimpleQueue[Any] = SimpleQueue()
        running, key = {}, uuid4().hex

        def submit(room: int) -> None:
            for number, task in islice(waiting, max(0, room)):
                # the key stands in Dask's logs and on its dashboard: it says nothing about the study
                name = f"task-{key}-{number}"
                future = client.submit(_run_packed, function, pack(task), pure=False, key=name)
                running[future] = number, task
                future.add_done_callback(finished.put)

        submit(TASKS_A_THREAD * max(1, self._threads()))
        while running:
            future = self._next(finished)
            try:
                result = future.result()
            except KilledWorker:
                result = LOST
            except CancelledError as error:
                raise UsageError(
                    "the Dask scheduler is gone", where=self._scheduler, do="run the same command again"
                ) from error
            number, task = running.pop(future)
            future.release()
            submit(TASKS_A_THREAD * max(1, self._threads()) - len(running))
            yield number, task, result

    def _next(self, finished: SimpleQueue[Any]) -> Any:
        """The next future to end. Raises UsageError after `NO_WORKER_SECONDS` without a worker."""
        any_left = all_left = time.monotonic()
        while not self._interrupted:
            try:
                return finished.get(timeout=POLL_SECONDS)
            except Empty:
                now, lost = time.monotonic(), self._own_workers - (threads := self._threads())
                any_left, all_left = now if threads else any_left, now if lost <= 0 else all_left
                if now - all_left > RESPAWN_SECONDS:
                    self._cluster.scale(len(self._cluster.worker_spec) + lost)
                    all_left = now
                elif now - any_left > NO_WORKER_SECONDS:
                    line = f"there has been no worker for {NO_WORKER_SECONDS} s"
                    raise UsageError(line, where=self._scheduler, do="run the same command again") from None
        raise KeyboardInterrupt

    @property
    def _own_workers(self) -> int:
        """Workers of its own; 0 where they are someone else's."""
        return 0 if self._scheduler else self._workers or this_machine().cores

    def _threads(self) -> int:
        """Of all workers; 0 where there are none, or the scheduler does not answer."""
        client = self._client
        try:
            return sum(client.sync(client.scheduler.ncores, callback_timeout=CONNECT_SECONDS).values())
        except (OSError, TimeoutError):
            return 0

    def _started(self) -> Any:
        if self._client is None:
            import dask

            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            self._stack.enter_context(dask.config.set(DASK_SETTINGS))
            self._client = self._connect() if self._scheduler else self._local()
            self._tell(f"Dask dashboard: {self._client.dashboard_link}")
        return self._client

    def _local(self) -> Any:
        from distributed import Client

        self._cluster = self._stack.enter_context(local_cluster(self._own_workers))
        client = self._stack.enter_context(Client(self._cluster))
        limits = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
        self._memory_limit = min(filter(None, limits), default=None)
        return client

    def _connect(self) -> Any:
        from distributed import Client

        try:
            client = self._stack.enter_context(Client(self._scheduler, timeout=CONNECT_SECONDS))
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(
                "no Dask scheduler with workers answers", where=self._scheduler, expected="tcp://HOST:PORT"
            ) from error
        return client
