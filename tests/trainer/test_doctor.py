"""The doctor names what holds a training back: whatever part is slowed down, it is that one."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from cache_schema import arrays
from trainer.data import augment, image
from trainer.doctor import __main__ as doctor
from trainer.doctor.finding import MEANING, Machine, findings
from trainer.doctor.parts import PARTS
from trainer.doctor.steps import Steps
from trainer.stages.bbox import BoxStage

SLEEP = {"read": 0.5, "decode": 0.5}
"""seconds for a chunk, which several triplets share; others: 0.05 for each item or pass"""
CPU = Machine(False, 4, 0, "dali", "disk", False, False, False, True, 512)
GPU = Machine(True, 16, 6, "dali", "disk", False, False, True, True, 512)


def parts(**slow):
    return {part: slow.get(part, 0.001) for part in PARTS}


def asleep(function, seconds):
    """The same function, slowed down."""

    def slowed(*given, **named):
        time.sleep(seconds)
        return function(*given, **named)

    return slowed


PLANTS = {
    "read": (arrays, "read_packed"),
    "decode": (arrays, "unpack"),
    "augment": (augment, "augment_params"),
    "warp": (image, "_remap"),
    "compute": (BoxStage, "forward"),
}


@pytest.mark.parametrize(
    "slow", [pytest.param(part, marks=[pytest.mark.check] * (part in ("decode", "warp"))) for part in PLANTS]
)
def test_a_part_that_was_slowed_down_is_named(slow, tiny_cache, tiny_settings, monkeypatch, capsys):
    where, name = PLANTS[slow]
    monkeypatch.setattr(where, name, asleep(getattr(where, name), SLEEP.get(slow, 0.05)))
    words = [str(tiny_cache), "stage=bbox", "fold=0", f"config={tiny_settings}", "train.batch=2", "seconds=1"]
    assert doctor.main(words) == 0
    said = capsys.readouterr().out
    assert f"What holds it back: {slow}." in said, said


def test_a_run_is_measured_by_its_own_settings_and_left_as_it_is(chain, true_boxes, capsys):
    out, runs = chain
    run = runs["study_fracture"][0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert doctor.main([str(run), f"boxes={true_boxes}", "seconds=1", "data.workers=1", "data.loader=plain"]) == 0
    said = capsys.readouterr().out
    assert "data.loader=plain, data.workers=1" in said and "What holds it back:" in said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("slow", PARTS)
def test_the_slowest_part_is_found_and_has_an_advice(slow):
    for machine in (CPU, GPU):
        times = parts(**{slow: 0.1})
        waiting = 8 * sum(times.values()) / max(1, machine.workers)
        (found,) = findings(times, Steps(5, 8, wait=waiting, compute=0.001), machine)
        assert found.part == slow and found.switches and MEANING[slow] in found.why


def test_a_step_that_hardly_waits_is_held_back_by_computing():
    (found,) = findings(parts(read=9.0), Steps(5, 8, wait=0.05, compute=1.0), GPU)
    assert found.part == "compute" and any("micro_batch" in switch for switch in found.switches)


def test_waiting_that_no_part_explains_is_the_hand_over():
    assert findings(parts(), Steps(5, 8, wait=2.0, compute=0.1), GPU)[0].part == "hand-over"


def test_what_takes_most_of_a_step_comes_first_and_both_are_named_where_both_count():
    found = findings(parts(warp=1.0), Steps(5, 8, wait=2.0, compute=6.0), CPU)
    assert [(each.part, each.share) for each in found] == [("compute", 0.75), ("warp", 0.25)]


def test_advice_fits_the_machine_and_the_settings():
    def advice(part, machine, **changed):
        return findings(parts(**{part: 1.0}), Steps(5, 8, 8.0, 0.1), replace(machine, **changed))[0].switches

    assert "data.store_cache" in advice("read", CPU, in_store=True)[0]
    assert not any("data.store_cache" in switch for switch in advice("read", CPU))
    kept = advice("decode", CPU, resident="ram")
    assert not any("data.resident=ram" in switch for switch in kept)
    assert any("data.workers=3" in switch for switch in kept)
    assert any("data.resident=gpu" in switch for switch in advice("warp", GPU))


def test_every_part_and_setting_that_it_names_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "howto.md").read_text().partition("## When training is slow")[2]
    page = page.partition("\n## ")[0]
    machines = [CPU, GPU, replace(CPU, in_store=True, crops=True), replace(GPU, cores=1, workers=2)]
    for machine, part in product(machines, PARTS):
        for wait in (0.0, 0.5, 100.0):
            for found in findings(parts(**{part: 0.1}), Steps(5, 8, wait, 0.5), machine):
                settings = re.findall(r"\b(?:data|train)\.\w+=", " ".join(found.switches))
                assert found.switches and all(setting in page for setting in settings), found
                assert found.part in page or "any part but `compute`" in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["stage=bbox"], "0 places given"),
        (["{cache}"], "no stage given"),
        (["{cache}x", "stage=bbox"], "is neither a run nor a cache"),
        (["{cache}", "stage=bbox", "seconds=no"], "seconds='no' does not fit"),
        (["{cache}", "stage=bbox", "data.wokers=1"], "no setting data.wokers"),
        (["{cache}", "stage=bbox", "datta=1"], "no setting datta"),
        (["{run}", "stage=bbox"], "stage is fixed by the run"),
    ],
)
def test_a_mistake_is_one_line(words, line, tiny_cache, chain, capsys):
    _, runs = chain
    words = [word.format(cache=tiny_cache, run=runs["bbox"][0]) for word in words]
    assert doctor.main(words) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_help_needs_no_torch():
    code = "import sys; from trainer.doctor.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
