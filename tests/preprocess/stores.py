"""What tests ask of a cache in a store, and builders, clusters and copies as commands."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from s3_server import S3Server

PREPROCESS = [sys.executable, "-m", "preprocess"]


def place(s3: S3Server, name: str) -> str:
    return f"s3://{s3.bucket}/{name}"


def objects_of(s3: S3Server, name: str, *, build: bool = False) -> dict[str, str]:
    """Digest of every object of a cache by its name, as `files_of` gives it of a folder; build: of those of .build."""
    found = s3.objects(f"{name}/")
    return {key: hashlib.sha256(data).hexdigest() for key, data in found.items() if key.startswith(".build") == build}


def start(arguments: Sequence[object], **changes: str) -> subprocess.Popen:
    """`preprocess ARGUMENTS` in a process group of its own."""
    command = [*PREPROCESS, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, env=os.environ | changes, **streams)


def run(*arguments: object, **changes: str) -> subprocess.CompletedProcess:
    """`preprocess ARGUMENTS`, that must not end in a traceback nor show a credential."""
    command = [*PREPROCESS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | changes)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and os.environ["AWS_SECRET_ACCESS_KEY"] not in said, said
    return done


OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")
OWN_FILES = """
set -e
mount --make-rprivate /
mount -t tmpfs kept /mnt
for folder in $KEPT; do
    mkdir -p "/mnt$folder"
    mount --bind "$folder" "/mnt$folder"
    mount -o remount,bind,ro "/mnt$folder"
done
for folder in $OWN; do if [ -d "$folder" ]; then mount -t tmpfs own "$folder"; fi; done
for folder in $KEPT; do
    mkdir -p "$folder"
    mount --move "/mnt$folder" "$folder"
done
cut -d ' ' -f 2 /proc/self/mounts | while read -r place; do
    case "$(stat -f -c %T "$place" 2>/dev/null)" in tmpfs|proc|sysfs|"") ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true;; esac
done
mkdir /tmp/worker && cd /tmp/worker
exec "$0" "$@"
"""
"""a mount namespace: temporary and home folders of its own, the source and all else read-only; the network is shared"""


@contextmanager
def cluster_of_separate_machines(source: Path, workers: int = 2) -> Iterator[str]:
    """The address of a Dask scheduler, and workers whose file systems share nothing but `source`, which is read-only."""
    own = [place for place in (*OWN, str(Path.home())) if not Path(sys.base_prefix).is_relative_to(place)]
    checkout = Path(__file__).resolve().parents[2]
    needed = {source.resolve(), checkout, Path(sys.prefix).resolve()}
    kept = [each for each in needed if not any(each != other and each.is_relative_to(other) for other in needed)]
    environment = os.environ | {
        "KEPT": " ".join(map(str, kept)),
        "OWN": " ".join(own),
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    }
    dask = [sys.executable, "-m"]
    command = [
        "unshare",
        *([] if os.geteuid() == 0 else ["-r"]),
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        OWN_FILES,
    ]
    processes = []

    def begin(command: Sequence[str]) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        processes.append(process)
        return process

    try:
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
        scheduler = begin([*dask, "distributed.cli.dask_scheduler", *options])
        address = _wait_for(scheduler, r"Scheduler at: +(tcp://\S+)")
        for _ in range(workers):
            options = ["--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
            _wait_for(
                begin([*command, *dask, "distributed.cli.dask_worker", address, *options]), r"Registered to: +(\S+)"
            )
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stderr.close()


def _wait_for(process: subprocess.Popen, line: str) -> str:
    said = ""
    for words in process.stderr:
        said += words
        if found := re.search(line, words):
            return found[1]
    raise RuntimeError(f"ended with status {process.wait()}: {said}")
