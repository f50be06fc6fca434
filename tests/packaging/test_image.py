"""The image: what its Dockerfile says, the words it takes, and the list of what it holds."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from dockerfile import copied, read_dockerfile
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "container/entry.sh"
BIN = Path(sys.executable).parent
PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def image():
    return read_dockerfile((ROOT / "Dockerfile").read_text())


def entry(*words: str, first: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The entry script as a container starts it. first: the container's first process, in a PID namespace of its own."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        [*first, "/bin/sh", ENTRY, *words], env=environment, capture_output=True, text=True, check=False
    )


def pinned(name: str) -> set[tuple[str, str]]:
    return {(canonicalize_name(package), number) for package, number in PINNED.findall((ROOT / name).read_text())}


def test_the_base_is_named_by_tag_and_the_user_by_number(image):
    assert re.fullmatch(r"python:3\.1\d-slim-\w+", image.base) and re.fullmatch(r"\d{4,}:\d{4,}", image.user)
    assert image.labels["org.opencontainers.image.version"] == version("cspine")
    assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_what_is_copied_is_there_and_not_ignored(image):
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, words in image.steps:
        for source, _ in copied(words, ROOT, Path("/")) if name == "COPY" else ():
            assert source.exists()
            assert any(fnmatch.fnmatch(str(source.relative_to(ROOT)).split("/")[0], pattern) for pattern in kept), (
                source
            )


def test_the_entry_and_the_health_check_are_the_script_that_is_copied(image):
    places = {
        str(there): here
        for name, words in image.steps
        if name == "COPY"
        for here, there in copied(words, ROOT, Path("/"))
    }
    assert image.entry[0] == "/bin/sh" and places[image.entry[1]] == ENTRY
    assert image.health == [*image.entry, "healthy"] and image.words == ["--help"]


def test_an_image_holds_the_locked_packages_that_are_needed_at_run_time():
    runtime, every = pinned("requirements.runtime.lock"), pinned("requirements.lock")
    assert runtime < every
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dicom"]]
    names = {name for name, _ in runtime}
    assert {canonicalize_name(re.match(r"[\w.-]+", each)[0]) for each in wanted} <= names
    assert not names & {"pytest", "mypy", "ruff", "moto", "hypothesis", "albumentations", "cyclonedx-python-lib"}


def test_help_names_each_word_that_the_image_takes():
    said = entry("--help")
    assert said.returncode == 0 and entry().stdout == said.stdout
    for word in ("predict", "train", "preprocess", "healthy", "accelerate"):
        assert f"  {word} ..." in said.stdout or f"  {word} " in said.stdout


def test_a_mistyped_word_is_one_line():
    said = entry("predikt", "source=x")
    assert (said.returncode, said.stderr) == (2, "error: no command predikt; did you mean predict?\n")


@pytest.mark.check
@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["predict"], ["trainer", "predict"]),
        (["train"], ["trainer", "run"]),
        (["preprocess", "build-cache"], ["preprocess", "build-cache"]),
        (["healthy"], ["trainer", "healthy"]),
        (["plan"], ["trainer", "plan"]),
        (["accelerate", "launch"], ["accelerate", "launch"]),
    ],
    ids=" ".join,
)
def test_words_are_those_of_the_commands(words, command):
    own = subprocess.run([BIN / command[0], *command[1:], "--help"], capture_output=True, text=True, check=True)
    assert entry(*words, "--help").stdout == own.stdout


@pytest.mark.check
@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root")
def test_the_health_check_asks_the_watch_of_its_own_container(tmp_path):
    alone = ("unshare", "--pid", "--fork", "--mount-proc")
    said = entry("healthy", first=alone)
    assert (said.returncode, said.stdout) == (0, "this container runs no watch\n")
    # the words stand in the first process's command line, as those of a container's command do
    script = '/bin/sh "$0" healthy; exit $?'
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    watch = [*alone, "/bin/sh", "-c", script, str(ENTRY), "predict", "watch=/in", f"out={tmp_path}"]
    said = subprocess.run(watch, env=environment, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (1, "") and f"{tmp_path}: no watch is at work" in said.stderr
    (tmp_path / "heartbeat.json").write_text('{"time": 1, "until": 9e12, "doing": "waiting"}')
    said = subprocess.run(watch, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "waiting" in said.stdout


def test_compose_gives_the_watch_no_network_no_rights_and_a_root_that_is_read_only(image):
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    watch = services["watch"]
    assert watch["read_only"] and watch["network_mode"] == "none" and watch["cap_drop"] == ["ALL"]
    assert watch["command"].split()[0] == "predict" and "profiles" not in watch and "deploy" not in watch
    places = {volume.rpartition("}:")[2].partition(":")[0]: volume.endswith(":ro") for volume in watch["volumes"]}
    assert places == {"/in": True, "/out": False, "/models": True}
    given = dict(word.split("=", 1) for word in watch["command"].split()[1:])
    assert {place for place in places if any(value.startswith(place) for value in given.values())} == set(places)
    train = services["train"]
    assert train["entrypoint"] == [*image.entry, "train"] and train["profiles"] == ["train"] and "deploy" in train
    assert image.user in watch["user"] and train["read_only"]


@pytest.mark.check
def test_the_bill_of_materials_is_valid_complete_and_the_same_each_time(tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    texts = []
    for name in ("one", "other"):
        subprocess.run([sys.executable, ROOT / "container/sbom.py", tmp_path / name], cwd=tmp_path, check=True)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1] and JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[0]) is None
    found = json.loads(texts[0])
    parts = {part["name"]: part for part in found["components"]}
    assert len(parts) > 100 and {(name, part["version"]) for name, part in parts.items()} <= pinned(
        "requirements.runtime.lock"
    )
    assert all(part["hashes"] for part in parts.values())
    assert sum("licenses" not in part for part in parts.values()) <= 2
    assert "numpy" in str(next(each for each in found["dependencies"] if each["ref"].startswith("pkg:pypi/zarr@")))
    assert found["metadata"]["component"]["name"] == "cspine" and "timestamp" not in found["metadata"]
