"""The stores, other than a folder, that a cache may be kept in.

    s3://BUCKET/PREFIX    Amazon S3 and what speaks its protocol; credentials, region and endpoint from the environment
    gs://BUCKET/PREFIX    Google Cloud Storage; credentials from the environment
    https://HOST/PATH     any web server with byte ranges; read-only, and its files cannot be listed
    memory://NAME         memory of this process, for tests
    FILE.zip              a zip file; read-only, and written as a whole by `preprocess copy`

Credentials are never part of an address, and errors never repeat what a server or a library said.
"""

import ipaddress
import os
import random
import re
import time
import zipfile
from collections.abc import Callable
from datetime import timedelta
from io import UnsupportedOperation
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from cache_schema.errors import CspineError, UsageError
from cache_schema.store_kinds import NO_BUCKET, DamagedFile, ObjectStore, Store, ZipStore, ends_before

Answer = TypeVar("Answer")

SCHEMES = ("s3", "gs", "https", "http", "memory")
UNLISTED = ("https", "http")
"""schemes whose files cannot be listed, nor written"""
ZIP = ".zip"

CLIENT = {"timeout": "60s", "connect_timeout": "5s", "pool_idle_timeout": "30s"}
RETRIES = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}
"""of obstore, which does not retry a body that was cut; `patiently` does"""
FIRST_WAITS = (0.2, 0.8)
WAITS = (0.2, 0.8, 3.0, 8.0, 16.0)
"""seconds between attempts, before a store has answered for the first time and after it"""


class StoreError(CspineError):
    """A store that cannot be reached, or that refuses. Never one whose files are missing or damaged."""


def require_address(url: str) -> SplitResult:
    """The parts of an address. Raises UsageError for one that no store has, or that holds credentials."""
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        expected = "s3, gs, https, memory, or a path on this machine"
        raise UsageError("is of an unknown scheme", where=f"{scheme}://...", expected=expected)
    parts = _place_alone(url)
    if parts is None or (parts.port is not None and scheme not in UNLISTED):
        what = "holds more than a place: credentials, a query or a fragment"
        do = "give credentials by environment variables, such as AWS_ACCESS_KEY_ID"
        raise UsageError(what, where=f"{scheme}://...", expected=f"{scheme}://NAME/...", do=do)
    if not parts.netloc:
        raise UsageError("names no bucket, host or name", where=url, expected=f"{scheme}://NAME/...")
    if scheme == "http" and not _is_loopback(parts.hostname):
        raise UsageError("is plain http", where=url, expected="https; http is for this machine alone (127.0.0.1)")
    return parts


def _place_alone(url: str) -> SplitResult | None:
    """The parts of an address that holds nothing but a place, else None: a slash in a password would end the name before it."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 it raises where that is no number
    except ValueError:
        return None
    return None if "@" in url or parts.query or parts.fragment else parts


Key = tuple[str, int, int]
"""address, process, and a hash of what the environment says of stores; memory has neither: a fork has what was there"""
_opened: dict[Key, Store] = {}
_answered: set[Key] = set()
"""stores that have answered"""
OF_STORES = ("AWS_", "GOOGLE_", "SSL_")
"""how variables begin that decide how a store is opened"""
_network_process: int | None = None
"""which first opened a store over the network; the threads behind it do not survive a fork"""


def open_store(url: str) -> Store:
    """The store with this address, or the zip file at this path; kept open by the process.

    Raises UsageError, also in a fork of a process that read a store over the network.
    """
    key = _key(url)
    if key not in _opened:
        _opened.setdefault(key, _open(url))  # another thread may have been faster
    return _opened[key]


def _key(url: str) -> Key:
    if url.startswith("memory:"):
        return url, 0, 0
    said = hash(frozenset(each for each in os.environ.items() if each[0].startswith(OF_STORES)))
    return url, os.getpid(), said


def _open(url: str) -> Store:
    global _network_process
    if "://" not in url:
        try:
            return ZipStore(url)
        except (OSError, zipfile.BadZipFile) as error:
            what = f"cannot be read as a zip file ({type(error).__name__})"
            raise UsageError(what, where=url, expected="one that preprocess copy wrote") from error
    parts = require_address(url)
    if parts.scheme != "memory":
        if _network_process not in (None, os.getpid()):
            do = "start processes by spawn or forkserver"
            raise UsageError("cannot be read in a forked process, whose parent read a store", where=url, do=do)
        _network_process = os.getpid()
    return ObjectStore(_object_store(parts))


def _object_store(parts: SplitResult) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import GCSStore, HTTPStore, MemoryStore, S3Store

    if parts.scheme == "memory":
        return MemoryStore()
    client: Any = CLIENT | {"allow_http": parts.scheme == "http"}
    retries: Any = {"client_options": client, "retry_config": RETRIES}
    try:
        if parts.scheme == "gs":
            return GCSStore(parts.netloc, **retries)
        if parts.scheme != "s3":
            return HTTPStore.from_url(f"{parts.scheme}://{parts.netloc}", **retries)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        if endpoint is not None:
            client["allow_http"] = _check_endpoint(endpoint)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        # the server compares each object with its digest before it keeps it
        found: Any = {"endpoint": endpoint, "region": region, "checksum_algorithm": "SHA256"}
        return S3Store(parts.netloc, **{key: value for key, value in found.items() if value}, **retries)
    except BaseError as error:
        what = f"cannot be opened ({type(error).__name__})"
        raise UsageError(what, where=parts.geturl(), do="see docs/stores.md for the environment variables") from None


def _check_endpoint(endpoint: str) -> bool:
    """Whether it is plain http, which is allowed on this machine only."""
    parts = _place_alone(endpoint)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("is no endpoint", where="AWS_ENDPOINT_URL", expected="https://HOST[:PORT]")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        where = f"AWS_ENDPOINT_URL={endpoint}"
        raise UsageError("is plain http", where=where, expected="https; http is for this machine alone (127.0.0.1)")
    return parts.scheme == "http"


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def patiently(url: str, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives, asked again after a while where the network or the server failed.

    Raises FileNotFoundError, DamagedFile, StoreError.
    """
    from obstore.exceptions import BaseError

    key = _key(url)
    waits = iter(WAITS if key in _answered else FIRST_WAITS)
    while True:
        try:
            found = ask()
            _answered.add(key)
            return found
        except FileNotFoundError as error:
            if refusal := _refusal(url, error):
                raise refusal from None
            _answered.add(key)
            raise
        except DamagedFile:
            raise
        except (BaseError, OSError) as error:
            refusal, wait = _refusal(url, error), next(waits, None)
            status = re.search(r"status code: (\d{3})", str(error))
            if ends_before(error):
                raise DamagedFile from None
            if refusal is not None:
                raise refusal from None
            if wait is None:
                how = f"status {status[1]}" if status else type(error).__name__
                do = "check the network" + (", AWS_ENDPOINT_URL and AWS_REGION" if url.startswith("s3:") else "")
                raise StoreError(f"the store does not answer ({how})", where=url, do=do) from None
            time.sleep(wait * random.uniform(0.5, 1.5))


def _refusal(url: str, error: Exception) -> StoreError | None:
    """The error for a request that will fail again, None for one that may succeed."""
    from obstore import exceptions

    of_s3 = url.startswith("s3:")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        do = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do" if of_s3 else None
        return StoreError("the store refuses access", where=url, do=do)
    if isinstance(error, exceptions.NotSupportedError | UnsupportedOperation):
        return StoreError("the store does not support this", where=url, do="see docs/stores.md")
    if isinstance(error, exceptions.InvalidPathError):
        what = "a name cannot be read: it has an empty part, . or .. between slashes, or a control character"
        return StoreError(what, where=url, do="correct the address, or rename the object")
    if NO_BUCKET in str(error):
        return StoreError("no such bucket", where=url, do="make the bucket, or correct its name")
    if "InvalidCertificate" in str(error):
        return StoreError("its certificate is not trusted", where=url, do="name its authority's file by SSL_CERT_FILE")
    if "169.254.169.254" in str(error):  # where a machine of the provider would have its own
        do = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if of_s3 else "see docs/stores.md"
        return StoreError("there are no credentials", where=url, do=do)
    return None
