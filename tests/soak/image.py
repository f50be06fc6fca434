"""The image, by Docker where it answers, else by its Dockerfile's steps in a bare Debian root: `python tests/soak/image.py`.

Without Docker the base is what debootstrap makes of the suite that the base's tag ends with, with Python, venv and certificates.
Nothing but the file's own steps is done to it, as root; commands then run as the file's user, with the root read-only, a /tmp of
their own, 64 MB of /dev/shm and no network but loopback. Needs root, debootstrap, iproute2, and about 8 GB.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from dockerfile import Image, copied, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CARRIED = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
"""of this machine, while the steps run: how names and packages are found here"""
SHARED_MEMORY = "64m"
"""Docker's default size of /dev/shm"""
TINY = """
model: {name: test_efficientnet_gn, pretrained: false}
data: {size: 64, workers: 2}
train: {epochs: 1, batch: 16, micro_batch: 8, eval_batch: 8, threads: 1, evaluate_every: 0}
tracker: none
"""

Row = tuple[str, str, bool]
Mounts = Mapping[str, tuple[Path, bool]]
"""path in the container -> path here, and whether it may be written"""


class Docker:
    def __init__(self, image: Image, work: Path):
        self.tag = "cspine-soak"
        subprocess.run(["docker", "build", "--quiet", "--tag", self.tag, ROOT], check=True)

    def size(self) -> int:
        command = ["docker", "image", "inspect", "--format", "{{.Size}}", self.tag]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def command(self, words: Sequence[str], mounts: Mounts) -> list[str]:
        volumes = [f"--volume={here}:{there}{'' if own else ':ro'}" for there, (here, own) in mounts.items()]
        guarded = ["--read-only", "--tmpfs=/tmp", "--network=none", "--cap-drop=ALL"]
        return ["docker", "run", "--rm", *guarded, *volumes, self.tag, *words]

    def stop(self, process: subprocess.Popen) -> None:
        process.terminate()  # the client passes it on


class Replay:
    """The same by debootstrap and chroot."""

    def __init__(self, image: Image, work: Path, base: Path | None = None, built: Path | None = None):
        self.image, self.root = image, built or work / "root"
        if built is None:
            self._make_base(base)
            with self._mounted():
                for name, rest in image.steps:
                    self._run(rest) if name == "RUN" else self._copy(rest)

    def size(self) -> int:
        return int(
            subprocess.run(["du", "-sxb", self.root], check=True, capture_output=True, text=True).stdout.split()[0]
        )

    def command(self, words: Sequence[str], mounts: Mounts) -> list[str]:
        user, root = self.image.user, self.root
        lines = [
            "ip link set lo up",
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount -t proc proc {root}/proc",
        ]
        lines += [f"mount -t tmpfs -o size=1g,mode=1777 tmpfs {root}/tmp", f"mount --rbind /dev {root}/dev"]
        lines += [f"mount -t tmpfs -o size={SHARED_MEMORY},mode=1777 tmpfs {root}/dev/shm"]
        for there, (here, own) in mounts.items():
            place = f"{root}{there}"
            lines += [f"mount --bind {here} {place}"] + [f"mount -o remount,bind,ro {place}"] * (not own)
            (root / there.lstrip("/")).mkdir(exist_ok=True)
        lines.append('exec "$@"')
        environment = [f"{name}={value}" for name, value in self.image.environment.items()]
        inside = [
            "chroot",
            f"--userspec={user}",
            "--groups=",
            root,
            "/usr/bin/env",
            "-i",
            f"--chdir={self.image.folder}",
        ]
        away = ["unshare", "--mount", "--pid", "--net", "--fork", "sh", "-ec", "\n".join(lines), "sh"]
        return [*map(str, [*away, *inside, *environment, *self.image.entry, *words])]

    def stop(self, process: subprocess.Popen) -> None:
        """As `docker stop`: SIGTERM to the container's first process, which is unshare's child."""
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)

    def _make_base(self, base: Path | None) -> None:
        if base is not None:
            subprocess.run(["cp", "-a", base, self.root], check=True)
            return
        suite = self.image.base.partition("@")[0].rpartition("-")[2]
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, str(self.root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wanted = self.image.base.partition(":")[2].partition("-")[0]
        has = subprocess.run(
            ["chroot", self.root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        if has != wanted:
            raise SystemExit(f"error: Debian {suite} has Python {has}; the Dockerfile wants {wanted}")

    @contextmanager
    def _mounted(self) -> Iterator[None]:
        """How this machine reaches packages is there while the steps run, and not in the image."""
        before = {}
        for path in map(Path, (*CARRIED, CERTIFICATES)):
            inside = self.root / path.relative_to("/")
            before[inside] = inside.read_bytes() if inside.is_file() else None
            if path.is_file():
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.write_bytes(path.read_bytes())
        try:
            yield
        finally:
            for inside, data in before.items():
                inside.unlink(missing_ok=True)
                if data is not None:
                    inside.write_bytes(data)

    def _run(self, command: str) -> None:
        names = [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]
        here = {name: os.environ[name] for name in names} | {"SSL_CERT_FILE": str(CERTIFICATES)}
        given = [f"{name}={value}" for name, value in {**here, **self.image.environment}.items()]
        lines = f'mount --rbind /dev {self.root}/dev; mount -t proc proc {self.root}/proc; exec "$@"'
        chroot = ["chroot", self.root, "/usr/bin/env", "-i", *given, "/bin/sh", "-c", command]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", lines, "sh", *chroot], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: the step ended with {done.returncode}: {command}\n{done.stderr[-2000:]}")

    def _copy(self, words: str) -> None:
        for source, target in copied(words, ROOT, self.root):
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


@dataclass
class Ran:
    status: int
    output: str
    seconds: float


def ran(container: Docker | Replay, words: Sequence[str], mounts: Mounts) -> Ran:
    started = time.monotonic()
    done = subprocess.run(container.command(words, mounts), capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout + done.stderr, time.monotonic() - started)


def opened(container: Docker | Replay, work: Path, models: Path) -> list[Row]:
    """The image at work. models: the out= of a plan, or a pack, of tiny networks."""
    out, data = work / "out", work / "data"
    data.mkdir()
    out.mkdir()
    out.chmod(0o777)  # the image's user is nobody here
    (data / "tiny.yaml").write_text(TINY)
    pack = data / "MODELS.cspine"
    if models.is_dir():
        subprocess.run([sys.executable, "-m", "trainer.pack", models, f"out={pack}"], check=True, capture_output=True)
    else:
        shutil.copy(models, pack)
    pack.chmod(0o644)
    mounts = {"/data": (data, False), "/out": (out, True)}
    rows: list[Row] = []

    def row(what: str, done: Ran, status: int, well: bool = True) -> None:
        good = done.status == status and well
        rows.append((what, f"status {done.status}, {done.seconds:.0f} s", good))
        if not good:
            print(done.output[-3000:])

    words = "preprocess phantom /out/rsna --studies 3 --slices 24 --segmented 3 --syntax explicit --workers 1"
    row("a phantom", ran(container, words.split(), mounts), 0)
    words = "preprocess build-cache /out/rsna /out/cache --folds 2 --workers 1"
    row("a cache of it", ran(container, words.split(), mounts), 0)
    source = "/out/rsna/train_images"
    done = ran(container, ["predict", f"source={source}", "models=/data/MODELS.cspine", "out=/out/answers"], mounts)
    row("answers of three studies, from the start of the container", done, 0, (out / "answers/report.html").is_file())
    here = [sys.executable, "-m", "trainer.predict", f"source={out / 'rsna/train_images'}", f"models={pack}"]
    subprocess.run([*here, f"out={work / 'here'}", "report=false"], check=True, capture_output=True)
    own, other = (pd.read_csv(place / "submission.csv") for place in (out / "answers", work / "here"))
    far = float((own["fractured"] - other["fractured"]).abs().max())
    rows.append(("submission.csv beside that of .venv", f"{far:.1e} at most apart", far <= 1e-6))
    train = "train stage=bbox cache=/out/cache out=/out/runs config=/data/tiny.yaml fold=0"
    done = ran(container, train.split(), mounts)
    row(
        "one training run by DALI, with two reading processes",
        done,
        0,
        bool(list(out.glob("runs/*/*/model.safetensors"))),
    )
    train = "train stage=bbox cache=/out/cache out=/out/plain config=/data/tiny.yaml fold=0 data.loader=plain"
    row("the same by the plain loader", ran(container, train.split(), mounts), 0)
    done = ran(container, ["predict", f"source={source}", "models=/data/MODELS.cspine", "out=/data/answers"], mounts)
    row("results into a folder that is read-only: one line", done, 2, len(done.output.splitlines()) < 4)
    rows.append(_watch(container, source, mounts, out))
    return rows


def _watch(container: Docker | Replay, source: str, mounts: Mounts, out: Path) -> Row:
    """Until it has answered, and its health check says so; then it is asked to end."""
    words = ["predict", f"watch={source}", "models=/data/MODELS.cspine", "out=/out/watched", "quiet=1", "every=1"]
    started = time.monotonic()
    process = subprocess.Popen(
        container.command(words, mounts), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until, table = started + 1800, out / "watched/predictions.csv"
    while not table.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    seconds = time.monotonic() - started
    healthy = ran(container, ["healthy", "/out/watched"], mounts).status if process.poll() is None else -1
    container.stop(process)
    said = process.communicate()[0]
    well = healthy == 0 and process.returncode == 143 and table.is_file() and len(pd.read_csv(table)) == 3
    if not well:
        print(said[-3000:])
    return "the watch: three answers, it is healthy, and ends on SIGTERM", f"{seconds:.0f} s to its answers", well


def try_image(work: Path, models: Path, base: Path | None = None, built: Path | None = None) -> list[Row]:
    image = read_dockerfile((ROOT / "Dockerfile").read_text())
    docker = (
        shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    )
    lacks = [name for name in ("debootstrap", "ip", "unshare") if not shutil.which(name)]
    if not docker and (lacks or os.geteuid() != 0):
        return [("the image", f"not tried: needs Docker, or root and {', '.join(lacks) or 'its tools'}", False)]
    started = time.monotonic()
    container = Docker(image, work) if docker else Replay(image, work, base, built)
    seconds, how = time.monotonic() - started, "docker build" if docker else "debootstrap and the Dockerfile's steps"
    rows: list[Row] = [(f"the image, by {how}", f"{container.size() / 1e9:.1f} GB, {seconds:.0f} s", True)]
    return [*rows, *opened(container, work, models)]


def main() -> int:
    from trainings import make_models

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a bare root to copy, instead of debootstrap")
    parser.add_argument("--built", type=Path, help="a root whose steps are done: only try it")
    parser.add_argument("--models", type=Path, help="a pack or the out= of a plan; by default tiny ones are trained")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        models = given.models or make_models(work / "models")
        rows = try_image(work, models, given.base, given.built)
        for what, seen, well in rows:
            print(f"{'ok' if well else 'WRONG':5}  {what:60}  {seen}", flush=True)
    return 0 if all(well for _, _, well in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
