"""The package as a user gets it: one version, one command for each module, and a wheel that needs no checkout."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from trainer.bundle.project_wheel import project_wheel
from trainer.cli import COMMANDS, HELP
from trainer.plan.graph import packaged_plans

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cache_schema", "preprocess", "trainer")
PYTHONS = ("3.11", "3.12", "3.13")
TINY = """
model: {name: test_efficientnet_gn, pretrained: false}
data: {size: 64}
train: {epochs: 1, batch: 16, micro_batch: 8, eval_batch: 8, threads: 1, evaluate_every: 0}
tracker: none
"""


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def python(*words: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)


def test_all_that_states_a_version_states_the_same():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    releases = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert {importlib.metadata.version("cspine"), releases[0], cited[1]} == {version}


def test_help_is_one_screen_that_names_each_command_and_imports_nothing_heavy():
    code = (
        "import sys, trainer.cli as c; c.main(['--help']); sys.exit(bool({'torch', 'pandas', 'zarr'} & {*sys.modules}))"
    )
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout == HELP + "\n"
    assert all(re.search(rf"^  {name} ", HELP, re.MULTILINE) for name in COMMANDS)
    assert len(HELP.splitlines()) <= 24 and max(map(len, HELP.splitlines())) <= 120


def test_without_a_command_they_are_listed_with_status_2():
    done = python("-m", "trainer")
    assert (done.returncode, done.stdout) == (2, HELP + "\n")


@pytest.mark.parametrize(
    "words, line",
    [
        (["tabels"], "error: no command tabels; did you mean tables?"),
        (
            ["plan", "demmo", "cache=c", "out=o"],
            "error: no plan demmo, neither a file nor one of the package's; did you mean demo?",
        ),
    ],
)
def test_a_mistyped_name_is_one_line_with_the_nearest(words, line):
    done = python("-m", "trainer", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


@pytest.mark.parametrize("command, words", [("plan", "--help"), ("look", "nonsense=1"), ("inspect", "gone.cspine")])
def test_a_command_is_what_its_module_is(command, words, tmp_path):
    one, other = (
        python("-m", *name, words, folder=tmp_path) for name in (("trainer", command), (f"trainer.{command}",))
    )
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_a_plan_of_the_package_is_found_by_name_from_any_folder(tmp_path):
    assert packaged_plans().keys() == {path.stem for path in (ROOT / "configs/plan").glob("*.yaml")}
    words = [f"cache={tmp_path / 'none'}", f"out={tmp_path / 'runs'}", "dry_run=true"]
    named = python("-m", "trainer", "plan", "demo", *words, folder=tmp_path)
    assert "expected a cache" in named.stderr and len(named.stderr.splitlines()) == 1
    assert named.stderr == python("-m", "trainer.plan", ROOT / "configs/plan/demo.yaml", *words).stderr


def test_a_file_of_that_name_comes_before_the_package_s_plan(tmp_path):
    (tmp_path / "demo").write_text("rnus: []\n")
    done = python("-m", "trainer", "plan", "demo", "cache=c", "out=o", folder=tmp_path)
    assert done.stderr == "error: demo: a plan has no rnus; did you mean runs?\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "build", "--quiet", "--offline", "--python", sys.executable, "--no-build-isolation", "--out-dir", out],
        cwd=ROOT,
        check=True,
    )
    return next(out.glob("*.whl"))


@pytest.mark.check
def test_the_wheel_holds_the_packages_and_configs_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {name for name in tracked(*PACKAGES) if (ROOT / name).is_file()}
    assert held == expected | {f"trainer/{name}" for name in tracked("configs")}
    assert wheel.name.split("-")[1] == importlib.metadata.version("cspine")


def interpreter(version: str) -> Path:
    """An interpreter that runs; skips where there is none. Those of pyenv are looked for where it keeps them."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in [shutil.which(f"python{version}"), *kept.glob(f"{version}.*/bin/python{version}")]:
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(path)
    pytest.skip(f"this machine has no Python {version}")


def locked_packages(python: Path, version: str) -> Path:
    """The site-packages that requirements.lock makes: this environment's own, or that of .venv-<version>, kept between runs."""
    if python == Path(sys.executable):
        return Path(importlib.metadata.distribution("pytest").locate_file(""))
    uv, home, lock = Path(sys.executable).with_name("uv"), ROOT / f".venv-{version}", ROOT / "requirements.lock"
    done = home / ".installed"
    if not done.is_file() or done.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, home], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", home / "bin/python", "--require-hashes", "-r", lock]
        installed = subprocess.run(install, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"the locked packages cannot be had for Python {version}: {installed.stderr.strip()[-300:]}")
        done.touch()
    return home / "lib" / f"python{version}" / "site-packages"


@pytest.fixture(params=PYTHONS)
def installed(request, wheel, tmp_path) -> Iterator[Path]:
    """bin/ of an environment with the wheel and the locked packages, from which the checkout cannot be imported."""
    base = interpreter(request.param)
    packages = locked_packages(base, request.param)
    uv, home = Path(sys.executable).with_name("uv"), tmp_path / "environment"
    subprocess.run([uv, "venv", "--quiet", "--python", base, home], check=True)
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", home / "bin/python", wheel]
    subprocess.run(install, check=True)
    # as a path alone: the .pth files there, the checkout's among them, are not read
    (home / f"lib/python{request.param}/site-packages/locked.pth").write_text(f"{packages}\n")
    yield home / "bin"
    shutil.rmtree(home)


@pytest.mark.check
def test_a_wheel_goes_from_a_phantom_to_a_trained_run_in_an_empty_folder(installed, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(command: str, *words: str) -> str:
        name, *given = command.split()
        done = subprocess.run(
            [installed / name, *given, *words],
            cwd=folder,
            env={**environment, "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    for package in PACKAGES:
        where = call("python -c", f"import {package}; print({package}.__file__)")
        assert Path(where).is_relative_to(installed.parent)
    of_bundles = "from trainer.bundle.project_wheel import project_wheel; print(sha256(project_wheel()[1]).hexdigest())"
    made = call("python -c", f"from hashlib import sha256; {of_bundles}")
    assert made.strip() == sha256(project_wheel()[1]).hexdigest(), "a bundle's wheel is the checkout's"
    call("preprocess phantom rsna --studies 4 --slices 24 --segmented 4 --syntax explicit --workers 1")
    call("preprocess build-cache rsna cache --folds 2 --workers 1")
    given = ("stage=bbox", "cache=cache", "out=runs", "config=tiny.yaml")
    call("python -m accelerate.commands.accelerate_cli launch --cpu --num_processes 1 -m trainer.run", *given)
    assert (folder / "runs/bbox-01B/fold0-seed1/model.safetensors").is_file()
    assert "already done" in call("trainer run", *given)
    (folder / "own.yaml").write_text("jobs: 1\nruns:\n  - {stage: bbox, folds: [1]}\n")
    call("trainer plan own.yaml cache=cache out=runs", "config=tiny.yaml")
    assert (folder / "runs/bbox-01B/fold1-seed1/model.safetensors").is_file()
    assert "bbox" in call("trainer tables runs cache=cache")
    assert "8 runs, 5 tables" in call("trainer plan demo cache=cache out=demo dry_run=true")
    shell = call("trainer plan demo cache=cache out=demo format=sh")
    assert shell.count("python -m trainer.run ") == 8 and str(ROOT) not in shell
    assert "-01.png" in call("trainer look stage=bbox cache=cache out=look items=2 data.size=64")


def test_make_test_lowest_names_tests_that_there_are():
    command = ["make", "--dry-run", "--always-make", "test-lowest"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"\btests/\S+", said)
    assert len(named) > 8 and all((ROOT / name).exists() for name in named)
