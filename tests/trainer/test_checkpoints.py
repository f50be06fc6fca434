"""Checkpoints hold tensors and numbers: nothing in one runs, and one that is damaged or of an older form is set aside."""

import io
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from trainings import same_weights

from cache_schema.documents import digest_of
from trainer import train
from trainer.loop import Run
from trainer.runs import checkpoint, random_states
from trainer.runs.identity import recorded_config

PICKLES = ("random_states_0.pkl", "optimizer.bin", "scaler.pt", "model.safetensors", "random_states_0.safetensors")


class Stopped(Exception):
    pass


class Hostile:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def given(tiny_cache, tiny_settings, tmp_path):
    return dict(stage="bbox", cache=tiny_cache, config=tiny_settings, deterministic="true", **{"train.epochs": 2})


@pytest.fixture
def stopped(given, tmp_path, monkeypatch):
    """A run that ended in the middle of step 3, with a checkpoint of step 2."""
    steps = Run.step
    with monkeypatch.context() as patched:

        def stop_there(self, model, optimiser, batches, passes, step, last):
            if step == 2:
                raise Stopped
            return steps(self, model, optimiser, batches, passes, step, last)

        patched.setattr(Run, "step", stop_there)
        with pytest.raises(Stopped):
            train(**given, out=tmp_path / "out")
    (run_dir,) = (tmp_path / "out").glob("bbox-*/*")
    return run_dir


@pytest.fixture(scope="module")
def whole(tiny_cache, tiny_settings, tmp_path_factory):
    given = dict(stage="bbox", cache=tiny_cache, config=tiny_settings, deterministic="true", **{"train.epochs": 2})
    return train(**given, out=tmp_path_factory.mktemp("whole"))


def test_a_hostile_pickle_in_a_checkpoint_runs_nothing(given, stopped, whole, tmp_path, capsys):
    touched, folder = tmp_path / "touched", stopped / "checkpoint"
    pickle.loads(pickle.dumps(Hostile(tmp_path / "proof")))
    assert (tmp_path / "proof").exists(), "the pickle is a hostile one"
    sound = shutil.copytree(folder, tmp_path / "sound")
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Hostile(touched)))
    shutil.copytree(sound, stopped / "checkpoint.old")
    saved = io.BytesIO()
    torch.save(Hostile(touched), saved)
    (stopped / "checkpoint.old/optimizer.safetensors").write_bytes(saved.getvalue())
    run_dir = train(**given, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert not touched.exists() and "resuming" not in said and same_weights(run_dir, whole)
    assert "checkpoint: is damaged: model.safetensors is not the file that was written; it is now" in said
    assert "checkpoint.old: is damaged: optimizer.safetensors is not the file" in said


def test_a_checkpoint_of_the_older_form_is_set_aside_with_a_line_and_the_run_begins_anew(
    given, stopped, whole, tmp_path, capsys
):
    folder, touched = stopped / "checkpoint", tmp_path / "touched"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "position.json").write_text(json.dumps({"step": 2, "key": recorded_config(stopped)["key"]}))
    for name in PICKLES[:2]:
        (folder / name).write_bytes(pickle.dumps(Hostile(touched)))
    run_dir = train(**given, out=tmp_path / "out")
    said, aside = capsys.readouterr().out, stopped / ".damaged-checkpoint"
    assert (
        f"{folder}: is not a complete checkpoint of this version; it is now {aside}\n" in said
        and "resuming" not in said
    )
    assert aside.is_dir() and not touched.exists() and same_weights(run_dir, whole)


@pytest.mark.parametrize(
    "name", ["position.json", "model.safetensors", "optimizer.safetensors", "random_states_0.safetensors"]
)
def test_a_run_goes_on_from_the_other_checkpoint_where_one_is_damaged(name, given, stopped, whole, tmp_path, capsys):
    shutil.copytree(stopped / "checkpoint", stopped / "checkpoint.old")
    path = stopped / "checkpoint" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    run_dir = train(**given, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert f"it is now {stopped / '.damaged-checkpoint'}\n" in said and "resuming at step 2" in said
    assert same_weights(run_dir, whole)


def test_the_optimiser_its_counts_and_all_random_states_come_back(tmp_path):
    accelerator, network = Accelerator(cpu=True), torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    trained = torch.optim.AdamW(network.parameters(), lr=0.1)
    model, optimiser = accelerator.prepare(torch.nn.ModuleList([network, frozen]), trained)
    for _ in range(3):
        model[0](torch.rand(1, 3, 8, 8)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    random.gauss(0, 1), np.random.standard_normal()  # of which each keeps a second number
    checkpoint.save(accelerator, model, tmp_path, 3, "key")
    expected = [random.random(), random.gauss(0, 1), np.random.standard_normal(), *torch.rand(2).tolist()]
    before = {key: value.clone() for key, value in optimiser.state[network.weight].items()}
    model[0](torch.rand(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    assert checkpoint.restore(accelerator, model, tmp_path, "key") == 3
    assert [random.random(), random.gauss(0, 1), np.random.standard_normal(), *torch.rand(2).tolist()] == expected
    after = optimiser.state[network.weight]
    assert after["step"] == 3 and all(torch.equal(after[name], before[name]) for name in before)
    assert after["exp_avg"].stride() == network.weight.stride()
    assert all(not path.name.endswith((".pkl", ".bin", ".pt")) for path in (tmp_path / "checkpoint").iterdir())


def test_random_states_are_plain_tensors_and_numbers():
    tensors, metadata = random_states.states()
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert json.loads(metadata["numbers"])["numpy"][0] == "MT19937"


@pytest.mark.parametrize(
    "held",
    [
        [],
        {"step": "two"},
        {"files": ["model.safetensors"]},
        {"files": {"../model.safetensors": "0"}},
        {"scaler": None},
        {"key": 7},
    ],
    ids=str,
)
def test_a_position_that_no_run_wrote_begins_anew(held, given, stopped, whole, tmp_path, capsys):
    path = stopped / "checkpoint/position.json"
    if isinstance(held, dict):
        held = {**json.loads(path.read_text()), **held}
        held.pop("digest")
        held["digest"] = digest_of(held)
    path.write_text(json.dumps(held))
    assert list(checkpoint.set_damaged_aside(stopped)) == [
        f"{stopped / 'checkpoint'}: is not a complete checkpoint of this version; it is now {stopped / '.damaged-checkpoint'}"
    ]
