"""What scripts of others rely on: a name that leaves, or a new one, is a change that is meant."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import trainer
from trainer.cli import COMMANDS
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_file, stage_names
from trainer.stages.base import Stage

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
stage variant cache out mode fold seed boxes pseudo backbone weights split deterministic tracker
model.name model.pretrained model.weights_file model.dropout model.positional model.batch_norm model.mask_pool model.chunk
data.size data.frames data.stride data.eval_stride data.thin data.crop data.interpolation data.intensity data.loader data.workers
data.resident data.ram_gb data.store_cache data.store_cache_gb data.on_error data.bank
augment.reverse augment.flip augment.contrast augment.contrast_range augment.affine augment.shift augment.scale augment.rotate
augment.warp augment.cutout augment.holes augment.hole_size
train.epochs train.batch train.micro_batch train.autotune train.eval_batch train.lr train.eps_form train.weight_decay train.warmup
train.precision train.checkpoint_minutes train.evaluate_every train.log_every train.threads
"""
VARIANTS = {"bbox": "01B", "vertebrae": "02G 04A 04F", "slice_fracture": "04F 04G", "study_fracture": "04F 04G"}
STAGE_FACTS = """
name order version config learns_from items needs_boxes backbone columns probabilities tables measure seconds legend
"""
STAGE_METHODS = """
keys images_a_pass truth known pool train_items eval_items targets model forward loss rows table scores
"""
WORDS = {
    "run": "stage variant cache out mode show fold seed boxes pseudo backbone weights split micro_batch deterministic tracker config "
    "section.key",
    "plan": "cache out dry_run scheduler format costs only config tables.key section.key",
    "tables": "cache export tables.over_seeds tables.key",
    "predict": "source watch models out report slices held_out dicom keep timing limit processes quiet every section.key "
    "data.loader data.workers train.eval_batch train.precision fold",
    "healthy": "watch out",
    "pack": "out stages variants folds seeds models",
    "inspect": "",
    "bundle": "out models target python cuda torch source",
    "doctor": "stage variant cache boxes pseudo seconds section.key data.workers",
    "look": "stage variant cache out boxes pseudo fold seed config draw epoch items slices tile tables mode split report walk "
    "section.key",
}
"""every `key=` that a command's --help names"""


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_package_gives_these_names():
    assert trainer.__all__ == ["Predictor", "train"]


def test_settings_have_these_keys():
    assert list(settings()) == SETTINGS.split()


def test_stages_and_variants_are_these():
    assert {name: " ".join(stage_file(name)[1]) for name in stage_names()} == VARIANTS


def test_a_stage_s_facts_and_methods_are_these():
    own = {name for name in Stage.__annotations__}
    assert own == set(STAGE_FACTS.split())
    methods = {name for name, _ in inspect.getmembers(Stage, callable) if not name.startswith("_")}
    assert methods == set(STAGE_METHODS.split())


def test_commands_are_these():
    assert set(COMMANDS) == set(WORDS)


@pytest.mark.parametrize("command", WORDS)
def test_a_command_s_help_names_its_words_and_exit_statuses(command):
    text = subprocess.run(
        [sys.executable, "-m", f"trainer.{command}", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert set(re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)?)=", text)) == set(WORDS[command].split())
    assert "Exit status: 0" in text
