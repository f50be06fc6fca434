"""README and docs name what exists: links, files, make targets, modules, commands, plans, settings."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from preprocess.cli import app
from trainer.settings.settings import Settings
from trainer.tables.settings import TableSettings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
FOLDERS = "cache_schema|preprocess|trainer|configs|benchmarks|tests|docs"
FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w")
TO_MAKE = re.compile(r"NAME|STAGE")
"""stand for names in a path of a file that is still to be written"""
every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> str:
    return "\n".join(CODE.findall(page.read_text()))


@every_page
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_every_file_that_is_named_exists(page):
    for name in FILE.findall(code(page)):
        if not TO_MAKE.search(name):
            assert (ROOT / name).exists(), name


@every_page
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = re.findall(r"^make +([a-z-]+)|`make\s+([a-z-]+)", page.read_text(), re.MULTILINE)
    assert {first or second for first, second in asked} <= targets


@every_page
def test_every_module_and_command_exists(page):
    text = code(page)
    modules = set(re.findall(r"-m\s+((?:trainer|benchmarks|preprocess)(?:\.[a-z_]+)*)", text))
    modules |= {f"trainer.{name}" for name in re.findall(r"(?:^|`)trainer ([a-z]+)\b", text, re.MULTILINE)}
    assert not [name for name in sorted(modules) if find_spec(name) is None]
    commands = set(re.findall(r"(?:^|`|&& )preprocess ([a-z][a-z-]*)", text, re.MULTILINE))
    assert commands <= set(get_command(app).commands)


@every_page
def test_every_plan_that_is_named_by_its_name_exists(page):
    for name in re.findall(r"trainer plan ([a-z][\w-]*) ", code(page)):
        assert (ROOT / f"configs/plan/{name}.yaml").is_file(), name


@every_page
def test_every_setting_exists(page):
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    sections["tables"] = TableSettings
    for section, key in re.findall(r"(?<![\w./])(model|data|augment|train|tables)\.([a-z_]+)(?=[`=])", code(page)):
        assert key in ("csv", "safetensors") or key in sections[section].model_fields, f"{section}.{key}"


@every_page
def test_every_option_of_preprocess_exists(page):
    commands = get_command(app).commands
    for name, words in re.findall(r"(?:^|`|&& )preprocess ([a-z][a-z-]*)([^`\n#&]*)", code(page), re.MULTILINE):
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, name


def test_every_page_is_listed():
    assert set(LINK.findall((ROOT / "docs/README.md").read_text())) >= {
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"
    }


@pytest.mark.parametrize("module", ["trainer.run", "trainer.plan", "trainer.tables", "trainer.predict", "trainer.look"])
def test_every_command_has_help(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout
