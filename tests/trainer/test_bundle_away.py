"""A bundle where it is meant to work: no network, a machine that is read-only, and only the packages that prediction needs."""

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from bundles import (
    can_be_alone,
    differences,
    environment_of,
    kill_after_an_answer,
    predict_alone,
    start_alone,
)

from cache_schema.layout import TARGETS
from preprocess.phantom.generate import write_phantom
from trainer.bundle.__main__ import main as bundle
from trainer.bundle.packages import needed
from trainer.bundle.targets import read_target
from trainer.bundle.wheels import requires_of
from trainer.pack import main as pack
from trainer.predict import main as predict

pytestmark = [
    pytest.mark.check,
    pytest.mark.skipif(not can_be_alone(), reason="this system has no namespaces of mounts and networks"),
]


@pytest.fixture(scope="module")
def packages() -> dict[str, str]:
    """What prediction needs, in the versions of this environment."""
    target = read_target("bare", None)
    return dict(needed(target, {}, lambda name, version: requires_of(name, version, target.python, {})).brought)


@pytest.fixture(scope="module")
def made(models, packages, tmp_path_factory) -> Path:
    """A folder with a bundle for machines that have what prediction needs, and what `trainer predict` answers here."""
    folder = tmp_path_factory.mktemp("bundle")
    assert pack([str(models), f"out={folder / 'models.cspine'}"]) == 0
    listed = folder / "freeze.txt"
    listed.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
    words = [f"out={folder / 'bundle'}", f"models={folder / 'models.cspine'}", f"target={listed}"]
    assert bundle(words) == 0
    again = [f"out={folder / 'again'}", *words[1:]]
    assert bundle(again) == 0
    _write_competition(folder / "source")
    assert predict([f"source={folder / 'source'}", f"models={models}", f"out={folder / 'expected'}"]) == 3
    return folder


def _write_competition(folder: Path) -> None:
    """Three studies in test_images and their rows in test.csv; the files of the last study are cut."""
    write_phantom(folder / "all", studies=3, slices=30, segmented=0, syntax="sv1", seed=11, workers=1, progress=False)
    (folder / "all/train_images").rename(folder / "test_images")
    shutil.rmtree(folder / "all")
    ids = sorted(path.name for path in (folder / "test_images").iterdir())
    for file in (folder / "test_images" / ids[-1]).iterdir():
        file.write_bytes(file.read_bytes()[:-1000])
    rows = [(f"{id}_{target}", id, target) for id in ids for target in TARGETS]
    pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"]).to_csv(
        folder / "test.csv", index=False
    )


def test_the_same_bundle_made_again_is_the_same_byte_for_byte(made):
    assert not subprocess.run(["diff", "-r", made / "bundle", made / "again"], check=False).returncode
    assert [path.name for path in (made / "bundle/wheels").iterdir()] == [
        f"cspine-{metadata.version('cspine')}-py3-none-any.whl"
    ]


def test_it_answers_with_only_the_packages_that_it_names_and_writes_only_below_out(made, packages, tmp_path):
    python = environment_of(tmp_path / "environment", packages)
    out, source = tmp_path / "out", made / "source"
    status, said = predict_alone(python, made / "bundle", out, f"source={source}")
    assert status == 3, said
    assert "refused: " in said and "Traceback" not in said
    assert differences(made / "expected", out) < 1e-6
    readable = sorted(path.name for path in (source / "test_images").iterdir())[:-1]
    rows = set(pd.read_csv(out / "submission.csv")["row_id"])
    assert rows >= {f"{id}_{target}" for id in readable for target in TARGETS}
    assert (out / "report.html").stat().st_size > 100_000


def test_killed_and_started_again_it_goes_on_to_the_same_answers(made, tmp_path):
    out, words = tmp_path / "out", (f"source={made / 'source'}", "report=false")
    python = Path(sys.executable)  # which has a cspine of its own, the checkout: the bundle's comes first
    kill_after_an_answer(start_alone(python, made / "bundle", out, *words), out)
    (packages,) = out.glob("bundle/packages-*")
    before = {path: path.stat().st_mtime_ns for path in (*out.glob("answers/*.json"), packages)}
    assert len(before) >= 2 and not (out / "submission.csv").exists()
    status, said = predict_alone(python, made / "bundle", out, *words)
    assert status == 3 and "answered already" in said, said
    assert differences(made / "expected", out) < 1e-6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_machine_without_a_package_of_the_list_is_told_so_in_one_line(made, packages, tmp_path):
    python = environment_of(tmp_path / "environment", sorted(packages.keys() - {"pandas", "timm"}))
    status, said = predict_alone(python, made / "bundle", tmp_path / "out", f"source={made / 'source'}")
    line = "error: not the packages that the bundle is for: pandas is not there, timm is not there; make the bundle again with "
    assert status == 1 and said.startswith(line) and said.count("\n") == 1
    assert not (tmp_path / "out/answers").exists()
