"""What training does when something is wrong, and what it tells besides."""

import json
import math

import pytest
import torch
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cache_schema.errors import StaleStudy, UsageError
from trainer import train
from trainer.loop import MOST_OVERFLOWS, Run
from trainer.runs import checkpoint
from trainer.runs.checkpoint import load_weights
from trainer.runs.inputs import Inputs
from trainer.runs.metrics_log import MetricsLog
from trainer.settings.keyvalue import flat
from trainer.settings.layers import load
from trainer.stages import losses


@pytest.fixture
def given(tiny_cache, tiny_settings, tmp_path):
    return dict(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings)


def spoil(monkeypatch, when, how):
    """The loss of the `when`-th pass gets `how` done to it."""
    passes, total = [], losses.total

    def spoiled(terms, counts=None):
        passes.append(1)
        return how(total(terms, counts)) if len(passes) == when else total(terms, counts)

    monkeypatch.setattr("trainer.loop.total", spoiled)


class InfiniteGradient(torch.autograd.Function):
    """The loss itself stays what it is."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


@pytest.mark.parametrize(
    ("how", "said", "items"),
    [(lambda loss: loss * math.nan, "the loss is nan", 8), (InfiniteGradient.apply, "the gradient's norm is", 16)],
)
def test_what_is_not_finite_stops_a_run_and_spoils_nothing(how, said, items, given, monkeypatch):
    """In the second of two passes of the second step; the first step's checkpoint is whole, and the run goes on from it."""
    spoil(monkeypatch, 4, how)
    with pytest.raises(UsageError, match=f"{said}.* at step 2; look at these items") as error:
        train(**given)
    assert len(error.value.where.split(", ")) == items, "those of the pass, where the loss tells which"
    monkeypatch.undo()
    run_dir = train(**given)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) for line in steps if "loss" in line)


def test_an_overflow_of_fp16_is_borne_for_a_while(given):
    settings = load(f"{key}={value}" for key, value in given.items())
    run = Run(settings, Inputs(settings), "")
    run.accelerator.scaler = object()
    run._require_finite([0.5], math.inf, [[]], 0)
    run.overflows = MOST_OVERFLOWS
    with pytest.raises(UsageError, match="the gradient's norm is inf at step 1"):
        run._require_finite([0.5], math.inf, [[]], 0)


def test_the_journal_is_json_to_any_reader(tmp_path):
    journal = MetricsLog(tmp_path)
    journal.append(1, {"loss": 0.5, "gradient_norm": math.inf, "score": {"value": math.nan}})
    (line,) = journal.path.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": 0.5,
        "gradient_norm": None,
        "score": {"value": None},
    }


def test_tensorboard_shows_every_step_once_and_the_scores(given, monkeypatch):
    """After a run that was stopped before it kept anything, too."""
    given |= {"tracker": "tensorboard", "train.checkpoint_minutes": 10}
    spoil(monkeypatch, 6, lambda loss: loss * math.nan)
    with pytest.raises(UsageError, match="at step 3"):
        train(**given)
    monkeypatch.undo()
    run_dir = train(**given)
    events = EventAccumulator(str(run_dir / "tracker"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("score/iou")] == [3]


def test_a_tracker_that_is_not_there_is_said_before_anything_is_trained(given, monkeypatch):
    monkeypatch.setattr("trainer.session.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(UsageError, match="tracker=wandb is not installed"):
        train(**given, tracker="wandb")
    assert not list(given["out"].glob("bbox*"))


def test_settings_for_trackers_are_flat():
    assert flat({"a": {"b": {"c": 1}}, "d": None, "e": "x"}) == {"a.b.c": 1, "d": "", "e": "x"}


def test_a_launchers_compiler_leaves_the_weights_their_names(given, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    run_dir = train(**given)
    settings = load(f"{key}={value}" for key, value in given.items())
    load_weights(Run(settings, Inputs(settings), "").stage.model(), run_dir / "model.safetensors")


def test_processes_that_find_different_folders_are_refused(given, monkeypatch):
    monkeypatch.setattr("trainer.run_output.gather_object", lambda own: [*own, False])
    with pytest.raises(
        UsageError, match="not the same folder for all processes; set out= to a folder that all machines share"
    ):
        train(**given)


def test_a_folder_that_shows_late_is_waited_for(given, monkeypatch):
    settings = load(f"{key}={value}" for key, value in given.items())
    run, slept = Run(settings, Inputs(settings), "key"), []

    def made_elsewhere(seconds):
        slept.append(seconds)
        settings.run_dir.mkdir(parents=True)

    monkeypatch.setattr("trainer.run_output.time.sleep", made_elsewhere)
    monkeypatch.setattr(
        "trainer.run_output.broadcast_object_list", lambda own: [(False, 0)]
    )  # the main process sees it
    assert run._require_one_folder() is False and slept == [1]


def test_predictions_on_a_study_that_was_replaced_meanwhile_are_not_kept(given, monkeypatch):
    run_dir = train(**given)

    def replaced(inputs):
        raise StaleStudy("was replaced in the cache while in use")

    monkeypatch.setattr("trainer.runs.inputs.Inputs.check_fresh", replaced)
    with pytest.raises(StaleStudy):
        train(**given, mode="predict", split="all")
    assert not (run_dir / "predictions-all.parquet").exists()


def test_the_last_whole_checkpoint_outlives_a_kill_at_any_point_of_saving(given, monkeypatch, tmp_path):
    """Also where only the one that was moved aside is left."""
    settings = load(f"{key}={value}" for key, value in given.items())
    run = Run(settings, Inputs(settings), "key")
    model, _ = run.accelerator.prepare(run.stage.model(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]))
    checkpoint.save(run.accelerator, model, tmp_path, 1, "key")
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    monkeypatch.setattr(checkpoint.Path, "rename", lambda *given: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        checkpoint.save(run.accelerator, model, tmp_path, 2, "key")
    assert checkpoint.position(tmp_path, "key") == 1
