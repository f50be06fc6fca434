"""What other packages may get wrong with a stage is one line of the trainer's, and the project's own stages go on working."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
from pathlib import Path
from trainer.stages.bbox import BoxStage


class Odd(BoxStage):
    name, config = "odd", Path(__file__).with_suffix(".yaml")
"""
CONFIG = "model: {name: test_efficientnet_gn, pretrained: false}\nvariants:\n  01A:\n"


def install(site: Path, package: str, name: str = "odd", stage: str = STAGE, config: str = CONFIG) -> None:
    """A package of one module, with the files by which Python finds its entry point."""
    (site / f"{package}-1.dist-info").mkdir(parents=True)
    (site / f"{package}-1.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (site / f"{package}-1.dist-info/entry_points.txt").write_text(f"[cspine.stages]\n{name} = {package}:Odd\n")
    (site / f"{package}.py").write_text(stage)
    (site / f"{package}.yaml").write_text(config)


def settings(site: Path, stage: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainer.run", f"stage={stage}", "show=true"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_stage_of_one_module_is_found(tmp_path):
    install(tmp_path, "one")
    done = settings(tmp_path, "odd")
    assert done.returncode == 0 and "stage: odd" in done.stdout and "variant: 01A" in done.stdout


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"stage": "1 / 0"}, "stage odd, one:Odd: cannot be imported (ZeroDivisionError: division by zero)"),
        ({"stage": STAGE.replace('"odd"', '"even"')}, "does not have the name of its entry point"),
        (
            {"stage": STAGE.replace("bbox import BoxStage", "base import Stage as BoxStage")},
            "does not define eval_items, ",
        ),
        ({"config": "data: {size: 64}\n"}, "one.yaml: names no variants; expected variants: "),
        ({"config": CONFIG.replace("model:", "modle:")}, "one.yaml: no setting modle; did you mean "),
    ],
)
def test_a_package_s_mistake_is_one_line(given, line, tmp_path):
    install(tmp_path, "one", **given)
    done = settings(tmp_path, "odd")
    assert done.returncode == 2 and line in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert settings(tmp_path, "bbox").returncode == 0


def test_a_name_of_two_packages_is_neither_s(tmp_path):
    install(tmp_path, "one")
    install(tmp_path, "two")
    done = settings(tmp_path, "odd")
    assert done.returncode == 2 and "is also that of" in done.stderr and "one:Odd" in done.stderr


def test_a_name_of_the_project_s_own_stays_its_own(tmp_path):
    install(tmp_path, "one", name="bbox")
    done = settings(tmp_path, "bbox")
    assert done.returncode == 0 and "variant: 01B" in done.stdout
