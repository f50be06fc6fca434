"""Runs on the workers of a Dask cluster that shares the cache and RUNS with this machine. A run takes one worker thread."""

from concurrent.futures import Future

from distributed import Client

from cache_schema.errors import UsageError
from trainer.plan.launch import RunOrder, RunOutcome, launch

TIMEOUT = "20s"


class DaskPool:
    """A worker uses the GPUs of its own environment, one thread per GPU, as dask-cuda's workers do."""

    spreads = False

    def __init__(self, address: str):
        if "://" not in address:
            raise UsageError("is not an address", where=f"scheduler={address}", expected="tcp://HOST:PORT")
        try:
            self._client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                "no Dask scheduler answers", where=f"scheduler={address}", expected="tcp://HOST:PORT"
            ) from error
        self.slots = sum(self._client.nthreads().values())
        if not self.slots:
            raise UsageError("has no worker", where=f"scheduler={address}", do="start workers first")
        self._executor = self._client.get_executor(pure=False, retries=0)

    def submit(self, order: RunOrder, width: int) -> Future[RunOutcome]:
        return self._executor.submit(launch, order)

    def stop(self) -> None:
        self._executor.shutdown(wait=False)
        self._client.close()
