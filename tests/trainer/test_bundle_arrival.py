"""What a bundle finds wrong with itself and with the machine that it arrives on."""

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

from trainer.bundle.arrival import NotAsMade, arrival_image, check_image
from trainer.bundle.write import SCRIPTS, listed_files, sealed

ROOT = Path(__file__).resolve().parents[2]


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
