"""The micro-batch and the CNN's layout: found out once, written down, and used again."""

import pytest
import torch
import yaml

from cache_schema.errors import CspineError
from trainer import train
from trainer.data.items import Item
from trainer.loop import Run
from trainer.runs.identity import config_file
from trainer.runs.inputs import Inputs
from trainer.session import Session
from trainer.settings.layers import load
from trainer.tuning.autotune import Layout, fastest
from trainer.tuning.micro_batch import find, largest_that_fits
from trainer.tuning.tuning import fastest_layout


def attempt(memory, tried):
    def run(size):
        tried.append(size)
        if size > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    return run


@pytest.mark.parametrize(("memory", "fits"), [(48, 48), (5, 3)])
def test_a_micro_batch_is_halved_until_it_fits(memory, fits):
    tried = []
    assert largest_that_fits(48, attempt(memory, tried)) == fits
    assert tried == [size for size in (48, 24, 12, 6, 3, 1) if size >= fits]


def test_a_mistake_that_is_not_about_memory_comes_through_and_no_memory_at_all_is_said():
    with pytest.raises(CspineError, match="not even one item fits"):
        largest_that_fits(1, attempt(0, []))
    with pytest.raises(ZeroDivisionError):
        largest_that_fits(4, lambda size: 1 // 0)


def test_memory_that_runs_out_in_training_is_one_line(tiny_cache, tiny_settings, tmp_path, monkeypatch):
    def step(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(
        CspineError, match=r"out of memory with 8 items at once; remove `chosen` from this file"
    ) as said:
        train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings)
    assert said.value.where == tmp_path / "bbox-01B/fold0-seed1/config.yaml"


def test_trying_leaves_the_model_and_the_random_numbers_as_they_were(tiny_cache, tiny_settings, true_boxes, tmp_path):
    words = ["stage=vertebrae", "variant=04A", f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}"]
    settings = load([*words, f"boxes={true_boxes}", "model.name=test_efficientnet", "model.dropout=0.5"])
    session = Session(settings, Inputs(settings), "")
    model = session.stage.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    (first, second) = session.inputs.cache.ids[:2]
    assert find(session, model, [Item(0, first, 0, 9, 30), Item(1, second, 0, 12, 30)]) == settings.train.batch
    fastest_layout(session, model, 2, [Layout(), Layout(channels_last=True)])
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layouts_make_the_same_features(tiny_cache, tiny_settings, tmp_path):
    settings = load(["stage=bbox", f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}"])
    backbone, images = Session(settings, Inputs(settings), "").stage.model().backbone.eval(), torch.rand(2, 3, 64, 64)
    expected, names = backbone(images), list(backbone.state_dict())
    backbone.lay_out(channels_last=True, compiled=False)
    assert torch.allclose(backbone(images), expected, atol=1e-5) and list(backbone.state_dict()) == names


def test_the_fastest_layout_of_those_that_work_in_time_is_taken():
    slow, fast, broken, late = Layout(), Layout(True), Layout(True, True), Layout(compiled=True)
    said, seconds = [], {slow: 2.0, fast: 1.0, late: 0.5}
    assert fastest([slow, fast, broken], seconds.__getitem__, said.append) == fast
    assert "channels last, compiled failed (KeyError)" in said[0]
    assert fastest([slow, late], seconds.__getitem__, said.append, seconds=-1) == slow
    with pytest.raises(KeyError):
        fastest([broken], seconds.__getitem__)


def test_a_choice_is_written_before_the_first_step_and_used_again(
    tiny_cache, tiny_settings, tmp_path, monkeypatch, capsys
):
    common = dict(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings, micro_batch="auto")
    path, seen = tmp_path / "bbox-01B/fold0-seed1/config.yaml", []

    def stop_at_once(self, model, optimiser, batches, passes, step, last):
        seen.append((passes, yaml.safe_load(path.read_text())["chosen"]))
        raise InterruptedError

    monkeypatch.setattr(Run, "step", stop_at_once)
    with pytest.raises(InterruptedError):
        train(**common)
    written = yaml.safe_load(path.read_text())
    assert written["train"]["micro_batch"] == "auto"
    assert seen == [(1, {"micro_batch": 32, "channels_last": False, "compiled": False})]
    assert "micro_batch=auto: 16, from the stage's settings; nothing is measured on a CPU" in capsys.readouterr().out
    written["chosen"]["micro_batch"] = 4
    path.write_bytes(config_file(written))
    with pytest.raises(InterruptedError):
        train(**common)
    assert seen[1][0] == 16 // 4
