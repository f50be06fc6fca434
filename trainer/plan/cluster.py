"""Runs on the workers of any Dask cluster that share the cache and RUNS with this machine: a run takes a thread of a worker."""

from concurrent.futures import Future

from distributed import Client

from cache_schema.errors import UsageError
from trainer.plan.launch import RunOrder, RunOutcome, launch

TIMEOUT = "20s"


class DaskPool:
    """A worker sees its GPUs as its own environment names them, as dask-cuda's workers do: one thread for each GPU."""

    spreads = False

    def __init__(self, address: str):
        if "://" not in address:
            raise UsageError("is no address", where=f"scheduler={address}", expected="tcp://HOST:PORT")
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
