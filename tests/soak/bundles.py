"""Bundles tried as they are used: by another Python, without a network, where nothing but out= can be written."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from cache_schema.layout import TARGETS
from preprocess.phantom.generate import write_phantom
from trainer.bundle.targets import packaged_targets, read_target

ROOT = Path(__file__).resolve().parents[2]
AWAY = """
set -e
mount --bind "$0" "$0"
awk '{print $5}' /proc/self/mountinfo | while read -r place; do
    case "$place" in "$0"*|/dev*|/proc*|/sys*) ;; *) mount -o remount,bind,ro "$place" ;; esac
done
for place in "$HOME" /tmp "$PWD"; do
    if touch "$place/.written" 2>/dev/null; then echo "$place can be written"; exit 99; fi
done
if [ -n "$(tail -n +3 /proc/net/dev | grep -v lo:)" ]; then echo "there is a network"; exit 99; fi
exec "$@"
"""
"""namespaces of mounts and networks: out= ($0) can be written, no other file, and there is no interface but a loopback that is down"""
PATIENCE_SECONDS = 1800


def can_be_alone() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*_unshare(), "true"], capture_output=True).returncode
    )


def _unshare() -> list[str]:
    return ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "--net", "--mount", "--propagation", "private"]


def start_alone(python: Path, bundle: Path, out: Path, *words: str) -> subprocess.Popen:
    """`predict.py` of a bundle with nothing but itself, its source and `out`."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "OMP_NUM_THREADS", "TZ") if name in os.environ}
    return subprocess.Popen(
        [*_unshare(), "sh", "-c", AWAY, str(out), str(python), str(bundle / "predict.py"), f"out={out}", *words],
        env=kept,
        cwd=bundle,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def predict_alone(python: Path, bundle: Path, out: Path, *words: str) -> tuple[int, str]:
    """(exit status, what it said)."""
    process = start_alone(python, bundle, out, *words)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def kill_after_an_answer(process: subprocess.Popen, out: Path) -> None:
    """SIGKILL to all of its session, once there is an answer."""
    until = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and not list(out.glob("answers/*.json")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def empty_environment(folder: Path, python: Path | None = None) -> Path:
    """bin/python of an environment without any package. python: its interpreter, by default the one of this environment."""
    if python is None:
        venv.create(folder, with_pip=False, symlinks=True)
    else:
        subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


def environment_of(folder: Path, names: Iterable[str]) -> Path:
    """bin/python of an environment that has these packages of the present one, and no others; as links."""
    python = empty_environment(folder)
    (place,) = folder.glob("lib/python*/site-packages")
    owners: dict[str, set[str]] = {}
    for dist in metadata.distributions():
        for parts in _recorded(dist):
            owners.setdefault(parts[0], set()).add(dist.name)
    for name in names:
        dist = metadata.distribution(name)
        base = Path(str(dist.locate_file("")))
        for parts in {parts[: 2 if len(owners[parts[0]]) > 1 else 1] for parts in _recorded(dist)}:
            link = place.joinpath(*parts)
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():  # of another package, as the folders of CUDA's are
                link.symlink_to(base.joinpath(*parts))
    return python


def _recorded(dist: metadata.Distribution) -> set[tuple[str, ...]]:
    """The first two parts of the path of each file that was installed beside it. By RECORD: `files` looks at each file."""
    rows = csv.reader((dist.read_text("RECORD") or "").splitlines())
    return {parts[:2] for row in rows if (parts := tuple(row[0].split("/")))[0] not in ("..", "")}


def differences(one: Path, other: Path) -> float:
    """The greatest difference between two submission.csv; infinite where their rows differ."""
    first, second = (pd.read_csv(path / "submission.csv") for path in (one, other))
    if not first["row_id"].equals(second["row_id"]):
        return float("inf")
    return float(np.abs(first["fractured"] - second["fractured"]).max())


def find_python(version: str) -> Path | None:
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in [shutil.which(f"python{version}"), *kept.glob(f"{version}.*/bin/python{version}")]:
        if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return Path(path)
    return None


def try_bundles(folder: Path, models: Path) -> list[tuple[str, str, bool]]:
    """A bundle for `bare` in an environment of nothing else, and one for `kaggle` where older packages lie. One row each.

    models: a packed file. Wants about 12 GB, and a package registry.
    """
    write_phantom(folder / "all", 3, slices=30, segmented=0, syntax="explicit", seed=9, progress=False)
    source = folder / "all/train_images"
    words = [f"source={source}", f"models={models}", f"out={folder / 'expected'}"]
    subprocess.run([sys.executable, "-m", "trainer.predict", *words], check=True, capture_output=True)
    rows = []
    for name, make in (("bare", _bare), ("kaggle", _kaggle)):
        own = folder / name
        own.mkdir()
        try:
            rows.append(_try(name, make(own), own, models, source, folder / "expected"))
        finally:
            shutil.rmtree(own)
    return rows


def _try(name: str, python: Path | str, own: Path, models: Path, source: Path, expected: Path) -> tuple[str, str, bool]:
    what = f"the bundle for {name}: no network, all but out= read-only, answers as here"
    if isinstance(python, str):
        return what, python, False
    words = [f"target={name}", *([] if name == "kaggle" else ["cuda=cpu"])]
    bundle, out = own / "bundle", own / "out"
    command = [sys.executable, "-m", "trainer.bundle", f"out={bundle}", f"models={models}", *words]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if made.returncode:
        return what, made.stderr.strip(), False
    began = time.monotonic()
    process = start_alone(python, bundle, out, f"source={source}")
    kill_after_an_answer(process, out)
    first = time.monotonic() - began
    status, said = predict_alone(python, bundle, out, f"source={source}")
    if status:
        return what, said[-500:], False
    differs, size = differences(expected, out), sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    seen = f"differ by {differs:.1e}, after a kill; {size / 1e6:.0f} MB, first answer after {first:.0f} s"
    return what, seen, differs < 1e-6 and len(pd.read_csv(out / "submission.csv")) == 3 * len(TARGETS)


def _bare(folder: Path) -> Path:
    return empty_environment(folder / "environment")


def _kaggle(folder: Path) -> Path | str:
    """What configs/targets/kaggle.txt lists, as far as registries have it: not the builds for one CUDA version."""
    target = read_target("kaggle", None)
    base = find_python(target.python)
    if base is None:
        return f"this machine has no Python {target.python}"
    home = folder / "environment"
    subprocess.run([base, "-m", "venv", home], check=True)
    listed = folder / "listed.txt"
    listed.write_text("".join(f"{name}=={version.partition('+')[0]}\n" for name, version in target.versions.items()))
    install: Sequence[object] = [home / "bin/python", "-m", "pip", "install", "--quiet", "-r", listed]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{packaged_targets()['kaggle']}: {done.stderr.strip()[-300:]}"
    return home / "bin/python"
