"""What holds for all tests."""

import signal
from collections.abc import Iterator

import pytest
from s3_server import S3Server, s3_server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as a shell has it in what it runs in the background: the commands that tests start, and interrupt, would take it over
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def started_s3() -> Iterator[S3Server]:
    """One server for all tests of a process."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(started_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A running S3 server, and the environment that leads there. Its bucket keeps what earlier tests wrote: take a prefix of your own."""
    for name, value in started_s3.environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return started_s3
