"""What a bundle brings and what it leaves to the target."""

import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cache_schema.errors import UsageError
from trainer.bundle import wheels
from trainer.bundle.__main__ import main as bundle
from trainer.bundle.choose import choose
from trainer.bundle.packages import ROOTS, installed_version, needed, project_requirements
from trainer.bundle.project_wheel import project_wheel
from trainer.bundle.targets import Target, listed_versions, packaged_targets, read_target

ROOT = Path(__file__).resolve().parents[2]
OF_TRAINING = {
    "tensorboard",
    "nvidia-dali-cuda130",
    "bokeh",
    "dask",
    "distributed",
    "nibabel",
    "highdicom",
    "pytest",
    "zarr",
}
FREEZE = """
# a comment
pandas==2.2.2
torch==2.11.0+cu128
Jinja2 == 3.1.6
uvicorn[standard]==0.48.0
cucim-cu12 @ file:///wheels/cucim_cu12-26.2.0-cp312-cp312-manylinux_2_28_x86_64.whl
spacy-model @ file:///wheels/spacy_model-3.8.0-py3-none-any.whl#sha256=193242
torchaudio @ file:///wheels/torchaudio-2.11.0%2Bcu128-cp312-cp312-manylinux_2_28_x86_64.whl
kernel_gateway @ git+https://example.org/kernel_gateway@b134e9945df2
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
-e git+https://example.org/own.git@abc#egg=own
python-apt===0.0.0+unknown
"""


def installed(name: str, version: str) -> list[str]:
    """The requirements that installed packages state."""
    assert metadata.version(name) == version
    return metadata.requires(name) or []


def all_roots() -> dict[str, str]:
    return {name: metadata.version(name) for name in ROOTS if installed_version(name)}


def test_what_pip_freeze_prints_is_read():
    assert listed_versions(FREEZE) == {
        "pandas": "2.2.2",
        "torch": "2.11.0+cu128",
        "jinja2": "3.1.6",
        "uvicorn": "0.48.0",
        "cucim-cu12": "26.2.0",
        "spacy-model": "3.8.0",
        "torchaudio": "2.11.0+cu128",
    }


def test_kaggles_list_names_its_source_and_its_python():
    path, kaggle = packaged_targets()["kaggle"], read_target("kaggle", None)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and "commit " in first and "2026" in first
    assert kaggle.python == "3.12" and kaggle.versions["torch"].startswith("2.11.0")
    assert read_target("kaggle", "3.13").python == "3.13"
    assert not read_target("bare", "3.11").versions


def test_a_bare_machine_is_brought_all_that_prediction_needs_and_nothing_of_training():
    brought = needed(read_target("bare", None), {}, installed).brought
    assert brought.keys() >= {each.name for each in project_requirements()} and not brought.keys() & OF_TRAINING
    here = {"extra": ""}
    for name, version in brought.items():
        assert version == metadata.version(name)
        for line in map(Requirement, metadata.requires(name) or []):
            if line.marker is None or line.marker.evaluate(here):
                assert line.specifier.contains(brought[canonicalize_name(line.name)], prereleases=True), line


def test_a_package_that_is_new_enough_is_the_targets_and_an_older_one_is_brought_with_what_it_needs():
    target = Target("own", "3.12", {**all_roots(), "numpy": "2.0.2", "pandas": "2.2.2", "torch": "2.9.0+cu128"})
    found = needed(target, {}, installed)
    assert set(found.brought) == {"numpy", "pandas", "python-dateutil", "six"}
    assert found.own["torch"] == ("2.9.0+cu128", ">=2.9")
    with_dates = Target("own", "3.12", {**target.versions, "python-dateutil": "2.9.0.post0"})
    assert set(needed(with_dates, {}, installed).brought) == {"numpy", "pandas"}


def test_what_a_brought_package_needs_counts_also_for_packages_that_are_the_targets():
    versions = {name: version for name, version in all_roots().items() if name != "timm"}
    target = Target("own", "3.12", {**versions, "safetensors": "0.5.0"})

    def requires(name: str, version: str) -> list[str]:
        return ["safetensors>=0.8", 'six; python_version < "3.12"', "idna; extra == 'more'"] if name == "timm" else []

    assert set(needed(target, {}, requires).brought) == {"timm", "safetensors"}
    older = Target("own", "3.11", target.versions)
    assert set(needed(older, {}, requires).brought) == {"timm", "safetensors", "six"}


def test_extras_of_a_requirement_are_followed():
    def requires(name: str, version: str) -> list[str]:
        return {"timm": ["rich[jupyter]>=13"], "rich": ["idna; extra == 'jupyter'"]}.get(name, [])

    versions = {name: version for name, version in all_roots().items() if name not in ("timm", "rich")}
    assert set(needed(Target("own", "3.12", versions), {}, requires).brought) == {"timm", "rich", "idna"}


def test_a_version_that_nothing_here_has_is_taken_where_it_is_pinned_and_said_otherwise():
    versions = {name: version for name, version in all_roots().items() if name != "timm"}
    target = Target("own", "3.12", versions)
    pinned = needed(target, {}, lambda name, version: ["libcu==12.8.4.1"] if name == "timm" else [])
    assert pinned.brought["libcu"] == "12.8.4.1"
    with pytest.raises(UsageError, match="libcu >=12 is needed and not installed here"):
        needed(target, {}, lambda name, version: ["libcu>=12"] if name == "timm" else [])


def test_a_target_whose_torch_is_missing_or_too_old_is_told_so(tmp_path):
    (tmp_path / "old.txt").write_text("torch==2.5.1\ntorchvision==0.20.1\n")
    for name, line in (("bare", "the target has no torch; expected >=2.9"), (tmp_path / "old.txt", "has torch 2.5.1")):
        with pytest.raises(UsageError, match=line):
            choose(str(name), None, "target", [], tmp_path / "x")


def test_another_torch_is_brought_with_all_of_its_cuda():
    listed = "\n".join(f"{name}=={version}" for name, version in all_roots().items())
    target = Target(
        "own", "3.12", listed_versions(f"{listed}\nnvidia-cublas==1\ntriton==3.9.0\ncuda-toolkit==13.2.2\njinja2==3")
    )
    brought = needed(target.without_torch(), {}, installed).brought
    assert {"torch", "torchvision", "triton", "cuda-toolkit", "nvidia-cublas"} <= set(brought)
    assert "jinja2" not in brought and "timm" not in brought


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["models=M"], "no out given; expected out=FOLDER"),
        (["out=o"], "no models given; expected models=FILE.cspine"),
        (["out=o", "models=M", "cuda=cu11"], "cuda=cu11 does not fit; expected target or cu13 or cu12 or cpu"),
        (["out=o", "models=M", "python=3.10"], "python=3.10 does not fit; expected 3.11 or 3.12 or 3.13"),
        (["out=o", "models=M", "target=kagle"], "no target kagle, neither a file nor one of the package's"),
        (["out=o", "models=M", "target=bare", "cuda=target"], "target=bare: the target has no torch"),
        (["out=o", "models=M", "torch=x.whl"], "torch= gives a torch without CUDA; give cuda=cpu with it"),
        (["out=o", "models=M", "cuda=cpu", "torch=x.whl"], "x.whl: is no wheel"),
        (["out=o", "models=none.cspine"], "models=none.cspine: no such file"),
        (["out=o", "models=M"], "M: is not a file of models; expected a file made by trainer pack"),
        (["out=o", "modls=M"], "no setting modls; did you mean models?"),
        (["out=full", "models=M"], "out=full: holds other files"),
    ],
)
def test_a_mistake_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "M").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/own.txt").write_bytes(b"")
    assert bundle(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and line in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_projects_wheel_holds_what_is_tracked_and_is_whole(tmp_path):
    name, content = project_wheel()
    assert project_wheel() == (name, content)
    (tmp_path / name).write_bytes(content)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = set(
        subprocess.run(
            [*command, "cache_schema", "preprocess", "trainer", "configs"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    configs = {f"trainer/{path}" for path in tracked if path.startswith("configs/")}
    expected = {path for path in tracked if not path.startswith("configs/")} - {"trainer/configs"} | configs
    held = {each for each in zipfile.ZipFile(tmp_path / name).namelist() if ".dist-info/" not in each}
    assert held == expected and wheels.fault(tmp_path / name) is None
    assert wheels.requires_of("cspine", "0", "3.12", {"cspine": tmp_path / name}) == metadata.requires("cspine")


def test_a_damaged_or_cut_wheel_is_found_by_its_own_record(tmp_path):
    name, content = project_wheel()
    path = tmp_path / name
    for at in (len(content) // 3, len(content) // 2):
        changed = bytearray(content)
        changed[at] ^= 4
        path.write_bytes(changed)
        assert wheels.fault(path)
    path.write_bytes(content[:-100])
    assert wheels.fault(path) == "is not a whole wheel"
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("trainer/vendored/other-1.dist-info/RECORD", "")
    assert wheels.fault(path) == "states no digest of trainer/vendored/other-1.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cspine-0.1.0.dist-info/RECORD", "trainer/__init__.py,,\n")
        archive.writestr("trainer/__init__.py", "")
    assert wheels.fault(path) == "states no digest of trainer/__init__.py"


def test_wheels_come_from_pips_registry_whole_ones_are_kept_and_others_go(tmp_path, monkeypatch):
    name, content = project_wheel()
    registry, folder = tmp_path / "registry", tmp_path / "wheels"
    for place in (registry, folder):
        place.mkdir()
    (registry / name).write_bytes(content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    (folder / name).write_bytes(content[:-1])
    (folder / "other-1.0-py3-none-any.whl").write_bytes(b"")
    versions, told = {"cspine": metadata.version("cspine")}, []
    wheels.download(versions, "3.12", folder, told.append)
    assert [path.read_bytes() for path in folder.iterdir()] == [content] and len(told) == 1
    (registry / name).unlink()
    wheels.download(versions, "3.12", folder, told.append)
    assert len(told) == 1, "nothing is asked for"
    (folder / name).unlink()
    with pytest.raises(wheels.NoWheel, match=r"pip cannot get cspine: .*; see that pip reaches its registry") as error:
        wheels.download(versions, "3.12", folder, told.append)
    assert "\n" not in str(error.value) and not list(folder.iterdir())


def test_the_glibc_that_wheels_need_is_in_their_names():
    old, new = (
        "a-1-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "b-1-cp312-cp312-manylinux_2_31_x86_64.manylinux_2_34_x86_64.whl",
    )
    assert wheels.glibc_needed(["c-1-py3-none-any.whl"]) == (0, 0)
    assert wheels.glibc_needed([old]) == (2, 17) and wheels.glibc_needed([old, new]) == (2, 31)
