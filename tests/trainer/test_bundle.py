"""What a bundle brings and what it leaves to the target; and what it finds wrong with itself and with a machine."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cache_schema.errors import UsageError
from trainer.bundle import wheels
from trainer.bundle.__main__ import main as bundle
from trainer.bundle.arrival import NotAsMade, arrival_image, check_image
from trainer.bundle.choose import choose
from trainer.bundle.packages import ROOTS, installed_version, needed, project_requirements
from trainer.bundle.project_wheel import project_wheel
from trainer.bundle.targets import Target, listed_versions, packaged_targets, read_target
from trainer.bundle.write import SCRIPTS, listed_files, sealed

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
cucim-cu12 @ https://example.org/cucim-cu12/cucim_cu12-26.2.0-cp312-cp312-manylinux_2_28_x86_64.whl
spacy-model @ https://example.org/spacy_model-3.8.0-py3-none-any.whl#sha256=193242
torchaudio @ https://example.org/whl/torchaudio-2.11.0%2Bcu128-cp312-cp312-manylinux_2_28_x86_64.whl
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


@pytest.fixture
def made(tmp_path) -> Path:
    """A bundle's folder with a wheel of the installer's corners, and a stand-in for models."""
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    for script in SCRIPTS:
        shutil.copy(ROOT / "trainer/bundle/carried" / script, folder)
    (folder / "MODELS.cspine").write_bytes(bytes(range(256)) * 20)
    with zipfile.ZipFile(folder / "wheels/x-1-py3-none-any.whl", "w") as archive:
        archive.writestr("x/__init__.py", "ONE = 1\n")
        archive.writestr("x-1.data/purelib/x/two.py", "TWO = 2\n")
        archive.writestr("x-1.data/platlib/x/three.py", "THREE = 3\n")
        archive.writestr("x-1.data/scripts/x", "#!python\n")
        tool = zipfile.ZipInfo("x/tool")
        tool.external_attr = 0o755 << 16
        archive.writestr(tool, "#!/bin/sh\n")
    _seal(folder)
    return folder


def _seal(folder: Path, **changes: object) -> None:
    content = {
        "python": f"3.{sys.version_info.minor}",
        "glibc": (2, 17),
        "own": {},
        "brought": {},
        "files": listed_files(folder),
    }
    (folder / "manifest.json").write_bytes(sealed({**content, **changes}))


def _check(folder: Path):
    """The bundle's own check.py."""
    spec = importlib.util.spec_from_file_location("bundles_check", folder / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refusal(folder: Path) -> str:
    check = _check(folder)
    with pytest.raises(check.Refused) as refused:
        check.checked()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_whole_bundle_passes_also_beside_what_an_upload_leaves(made):
    (made / "dataset-metadata.json").write_text("{}")
    assert set(_check(made).checked()["files"]) == {*SCRIPTS, "MODELS.cspine", "wheels/x-1-py3-none-any.whl"}


@pytest.mark.parametrize("name", ["MODELS.cspine", "wheels/x-1-py3-none-any.whl", "predict.py", "check.py"])
def test_a_flipped_bit_a_cut_and_a_missing_file_are_named(name, made):
    check = _check(made)  # before it is damaged itself
    content = (made / name).read_bytes()
    for changed in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b"\0"):
        (made / name).write_bytes(changed)
        with pytest.raises(check.Refused, match=rf"{name}: is damaged: it does not match its digest; copy or upload"):
            check.checked()
    (made / name).unlink()
    with pytest.raises(check.Refused, match=rf"{name}: is missing; copy or upload the bundle again"):
        check.checked()


def test_a_flipped_bit_of_the_manifest_is_found_wherever_it_changes_something(made):
    path, found = made / "manifest.json", 0
    content, check = path.read_bytes(), _check(made)
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(check.Refused, match=r"manifest.json: is damaged"):
            check.checked()
        found += 1
    path.unlink()
    assert found > 100 and "manifest.json: no such file" in _refusal(made)


def test_a_file_that_is_not_the_bundles_is_refused(made):
    (made / "wheels/other-1-py3-none-any.whl").write_bytes(b"")
    assert "other-1-py3-none-any.whl: is not of this bundle; move it away" in _refusal(made)


def test_another_python_or_an_older_glibc_is_refused(made):
    _seal(made, python="3.9")
    assert (
        f"this is Python 3.{sys.version_info.minor}; the bundle is for Python 3.9; make it with python=3."
        in _refusal(made)
    )
    _seal(made, glibc=(9, 1))
    assert "the bundle's packages need 9.1 or newer" in _refusal(made)


def test_wheels_are_unpacked_once_and_a_half_unpacked_folder_is_not_used(made, tmp_path):
    check, own = _check(made), tmp_path / "out/bundle"
    manifest = check.checked()
    place = own / f"packages-{manifest['sha256'][:16]}"
    half = place.with_name(f"{place.name}.part")
    half.mkdir(parents=True)
    (half / "left.py").write_text("")
    (own / "packages-of-another").mkdir()
    assert check.unpacked(manifest, own) == place
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert files == {"x/__init__.py", "x/two.py", "x/three.py", "x/tool"}
    assert (place / "x/tool").stat().st_mode & 0o111 and [path.name for path in own.iterdir()] == [place.name]
    before = (place / "x/two.py").stat().st_mtime_ns
    assert check.unpacked(manifest, own) == place and (place / "x/two.py").stat().st_mtime_ns == before


def test_the_commands_of_a_bundle_answer_in_one_line_and_leave_nothing_in_it(made, tmp_path):
    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    whole = call(str(made / "check.py"))
    assert (whole.returncode, whole.stderr) == (0, "") and "the bundle is whole: 4 files" in whole.stdout
    unsaid = call(str(made / "predict.py"), "source=x")
    assert unsaid.returncode == 2 and unsaid.stderr.startswith("usage: `python predict.py source=FOLDER out=DIR")
    (made / "MODELS.cspine").write_bytes(b"")
    damaged = call(str(made / "predict.py"), "source=x", "out=out")
    assert damaged.returncode == 1 and damaged.stderr.count("\n") == 1 and "MODELS.cspine: is damaged" in damaged.stderr
    assert not (tmp_path / "out").exists() and not list(made.rglob("__pycache__"))


def test_the_machines_packages_are_compared_with_what_fits(made, monkeypatch):
    check = _check(made)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = {"numpy": {"needs": ">=2.1"}, "packaging": {"needs": ""}}
    check.check_versions(own, made)
    wrong = {**own, "pandas": {"needs": ">=99"}, "nonesuch": {"needs": ">=1"}}
    line = rf"nonesuch is not there, pandas {metadata.version('pandas')} does not fit >=99; make the bundle again with python=3."
    with pytest.raises(check.Refused, match=line):
        check.check_versions(wrong, made)


def test_an_image_that_differs_is_refused_and_rounding_is_not(tmp_path):
    image = arrival_image()
    assert image.shape == (2, 3, 64, 64) and image.dtype == np.float16 and len(np.unique(image)) > 100
    grey = np.float16(1 / 255 / 0.33)
    for shift, well in ((0, True), (0.9, True), (3, False), (np.nan, False)):
        np.save(tmp_path / "image.npy", image + np.float16(shift) * grey)
        if well:
            check_image(tmp_path / "image.npy")
        else:
            with pytest.raises(NotAsMade, match="an image differs by"):
                check_image(tmp_path / "image.npy")


def test_the_manifest_states_its_own_digest():
    document = json.loads(sealed({"b": 1, "a": [2, "x"]}))
    assert document["sha256"] == hashlib.sha256(b'{"a":[2,"x"],"b":1}').hexdigest()
