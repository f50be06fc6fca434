"""The rules between the packages, read from their import statements."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.settings.stage_registry import stage_names

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "cache_schema": {"preprocess", "trainer", "pydicom", "dask", "distributed", "torch", "nvidia"},
    "preprocess": {"trainer", "torch", "torchvision", "timm", "accelerate", "nvidia"},
    "trainer": {"preprocess", "pydicom", "dask", "distributed", "nibabel"},
}
DOORS = {("trainer/predictor/scans.py", "preprocess"), ("trainer/plan/dask_pool.py", "distributed")}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_its_side_of_the_house_may(package):
    for path in (ROOT / package).rglob("*.py"):
        where = str(path.relative_to(ROOT))
        doors = {name for file, name in DOORS if file == where}
        assert not imported(path) & FORBIDDEN[package] - doors, where


def test_one_file_names_dali_operators():
    users = {p.name for p in (ROOT / "trainer").rglob("*.py") if "nvidia.dali import" in p.read_text()}
    assert users == {"dali.py"}


def rooms(package: str) -> dict[str, set[str]]:
    """Of each folder and single file of a package, which others of them it imports."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        own = path.relative_to(ROOT / package).with_suffix("").parts[0]
        for node in _at_run_time(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                first, _, rest = module.partition(".")
                if first == package:
                    inside = [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
                    found.setdefault(own, set()).update(set(inside) - {own})
    return found


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            yield from _at_run_time(node)


@pytest.mark.parametrize("package", ["cache_schema", "preprocess", "trainer"])
def test_arrows_between_rooms_go_one_way(package):
    left = rooms(package)
    while left:
        leaves = [room for room, others in left.items() if not others & left.keys()]
        assert leaves, f"a circle among {sorted(left)}"
        for room in leaves:
            del left[room]


WITHOUT_TORCH = (
    "trainer.settings.layers",
    *(f"trainer.stages.{name}" for name in stage_names()),
    "trainer.runs.identity",
    "trainer.run",
    "trainer.plan.execute",
    "trainer.tables.make",
    "preprocess.cli",
)


def test_torch_is_not_imported_before_it_is_needed():
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if "torch" in sys.modules:
        sys.exit(module)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_entry_stays_short():
    assert len((ROOT / "trainer/run.py").read_text().splitlines()) < 100


def test_no_committed_file_names_a_package_registry():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    words = ["pypi" + ".org", "python" + "hosted", "--index" + "-url", "--extra-index" + "-url"]
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".parquet"} and name != "Makefile":
            text = path.read_text(errors="ignore")
            assert not [word for word in words if word in text], name
