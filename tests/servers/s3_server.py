"""An S3 server on loopback that checks credentials: moto's, with authentication on. Its objects are in its memory.

    with s3_server() as server, environment(server.environment):
        CacheWriter(f"s3://{server.bucket}/cache")

`python tests/servers/s3_server.py` prints what to export, and runs until its standard input ends.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

BUCKET, REGION = "bucket", "us-east-1"
STARTS_WITHIN = 60.0
OPEN_REQUESTS = 3
"""that moto answers before it asks for credentials: those that make the user"""
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
)
"""of the environment, that decide where S3 is and who asks"""
ALL_OF_S3 = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True)
class S3Server:
    """A running server with an empty bucket, and the keys of a user who may do all with S3."""

    endpoint: str
    key: str
    secret: str
    bucket: str = BUCKET

    @property
    def environment(self) -> dict[str, str | None]:
        """What to set; None for what must not be set."""
        given = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return {
            **dict.fromkeys(VARIABLES),
            **given,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def at(self, endpoint: str) -> "S3Server":
        """The same server behind another address, such as a proxy's."""
        return replace(self, endpoint=endpoint)

    def client(self) -> Any:
        """Of boto3: another implementation than the one under test."""
        return _client("s3", self.endpoint, self.key, self.secret)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """All objects below a prefix, by their names from there."""
        found, client = {}, self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for each in page.get("Contents", ()):
                body = client.get_object(Bucket=self.bucket, Key=each["Key"])["Body"].read()
                found[each["Key"].removeprefix(prefix).lstrip("/")] = body
        return found


def _client(service: str, endpoint: str, key: str, secret: str) -> Any:
    import boto3

    given = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": REGION}
    return boto3.session.Session().client(service, endpoint_url=endpoint, **given)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def s3_server(bucket: str = BUCKET) -> Iterator[S3Server]:
    """Starts the server in a process of its own, makes a user with keys, and a bucket. Ends it at the end."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    server = subprocess.Popen(
        command,
        env=kept | {"INITIAL_NO_AUTH_ACTION_COUNT": str(OPEN_REQUESTS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt in the terminal is the tests' to handle
    )
    try:
        _wait_for(server, port)
        endpoint = f"http://127.0.0.1:{port}"
        iam = _client("iam", endpoint, "nobody", "nothing")
        iam.create_user(UserName="tester")
        iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=json.dumps(ALL_OF_S3))
        keys = iam.create_access_key(UserName="tester")["AccessKey"]
        found = S3Server(endpoint, keys["AccessKeyId"], keys["SecretAccessKey"], bucket)
        found.client().create_bucket(Bucket=bucket)
        yield found
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen, port: int) -> None:
    ends = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < ends and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"moto's server did not start (status {server.poll()})")


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, removes those that are None, and puts all back."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main() -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            print(f"unset {name}" if value is None else f"export {name}={value}", flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
