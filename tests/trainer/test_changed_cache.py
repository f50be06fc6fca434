"""A cache that is built anew under a run: the run stops with one line, and nothing is kept of what it did not begin with."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pandas as pd
import pytest
from changes import other_pixels, other_segmentation
from test_processes import ROOT, torchrun

from cache_schema import Cache, CacheWriter, Study
from cache_schema.errors import CacheError, CspineError, UsageError
from trainer import run, train
from trainer.loop import Run
from trainer.plan.__main__ import main as plan
from trainer.runs.identity import model_key, prediction_inputs, run_key
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.tables import export

DAYS = {"train.epochs": 300}
"""far more than a test lasts: a run that is not stopped fails it"""


def publish(cache: Path, id: str, change: Callable[[Study], Study] = other_pixels) -> None:
    """By a build that has not yet ended."""
    CacheWriter(cache).publish(change(Cache(cache).study(id)))


def publish_segmentation(cache: Path, id: str) -> None:
    publish(cache, id, other_segmentation)


def publish_and_finish(cache: Path, id: str) -> None:
    publish(cache, id)
    CacheWriter(cache).finish()


def remove(cache: Path, id: str) -> None:
    CacheWriter(cache).remove(id)


@contextmanager
def once_there(path: Path, act: Callable[[], None]) -> Iterator[Event]:
    """Acts in a thread as soon as a file is there; the event is set once that is done."""
    over, acted = Event(), Event()

    def watch():
        while not over.wait(0.01):
            if path.exists():
                act()
                acted.set()
                return

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield acted
    finally:
        over.set()
        watcher.join()


@pytest.fixture
def cache(tiny_cache, tmp_path) -> Path:
    return shutil.copytree(tiny_cache, tmp_path / "cache")


@pytest.fixture
def given(cache, tiny_settings, tmp_path):
    return dict(stage="bbox", cache=cache, out=tmp_path / "runs", config=tiny_settings)


def settings_of(given, **more):
    return load(f"{key}={value}" for key, value in {**given, **more}.items())


def study_of(settings, place):
    inputs = Inputs(settings)
    trained, held_out = inputs.train_ids(), inputs.scored_ids()
    return {"trained on": trained, "held out": held_out}[place][0]


def kept(run_dir):
    return {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("place", "change", "more"),
    [
        ("trained on", publish, {}),
        ("trained on", publish, {"data.resident": "ram", "data.loader": "plain"}),
        ("trained on", publish, {"data.workers": 1, "data.on_error": "skip"}),
        ("trained on", publish_segmentation, {}),
        ("trained on", publish_and_finish, {}),
        ("trained on", remove, {"data.resident": "ram", "data.on_error": "skip"}),
        ("held out", publish, {}),
        ("held out", remove, {}),
    ],
)
def test_a_run_whose_study_is_replaced_stops_and_keeps_nothing_from_then_on(place, change, more, given, capfd):
    words = {**given, **DAYS, **more}
    settings = settings_of(words)
    id, logged = study_of(settings, place), []

    def act():
        change(settings.cache, id)
        logged.append(len((settings.run_dir / "metrics.jsonl").read_text().splitlines()))

    with once_there(settings.run_dir / "checkpoint/position.json", act) as acted:
        status = run.main([f"{key}={value}" for key, value in words.items()])
    said = [line for line in capfd.readouterr().err.splitlines() if "rror" in line or "Traceback" in line]
    assert acted.is_set() and status in (1, 2) and len(said) == 1 and id in said[0], said
    assert any(
        words in said[0] for words in ("was replaced in the cache while", "was changed after", "but not on disk")
    )
    assert not {"model.safetensors", "predictions.parquet"} & kept(settings.run_dir)
    assert json.loads((settings.run_dir / "checkpoint/position.json").read_text())["step"] <= logged[0]


def test_processes_that_opened_different_studies_do_not_train_together(given, monkeypatch):
    """What the other one would say is made from the cache as it is a moment later."""
    settings = settings_of(given)
    inputs = Inputs(settings)
    publish_and_finish(settings.cache, study_of(settings, "held out"))
    other = prediction_inputs(settings, inputs, run_key(settings, inputs))
    monkeypatch.setattr("trainer.session.gather_object", lambda own: [*own, other])
    with pytest.raises(UsageError, match="changed while the processes of this run opened them; start again"):
        train(**given)


@pytest.mark.check
def test_one_of_two_processes_says_that_a_study_was_replaced_and_both_stop(given):
    words = {**given, **DAYS, "train.batch": 4, "train.micro_batch": 2}
    settings = settings_of(words)
    id = study_of(settings, "held out")
    with once_there(settings.run_dir / "checkpoint/position.json", lambda: publish(settings.cache, id)) as acted:
        done = torchrun([ROOT / "trainer/run.py", *(f"{key}={value}" for key, value in words.items())])
    assert acted.is_set() and done.returncode
    assert done.stderr.count(f"error: {id}: was replaced in the cache while in use; start again") == 1
    assert not {"model.safetensors", "predictions.parquet"} & kept(settings.run_dir)


def test_boxes_that_are_set_during_a_run_do_not_stop_it(given, true_boxes):
    settings, boxes = settings_of(given), pd.read_parquet(true_boxes)
    with once_there(
        settings.run_dir / "checkpoint/position.json", lambda: CacheWriter(settings.cache).set_boxes(boxes)
    ) as acted:
        run_dir = train(**given, **{"train.epochs": 12})
    assert acted.is_set() and "predictions.parquet" in kept(run_dir)
    record = Cache(settings.cache).record(study_of(settings, "trained on"))
    assert record.study_box is not None


@pytest.mark.parametrize("change", [publish, publish_segmentation, remove])
def test_a_run_that_is_started_within_a_change_makes_no_folder_and_one_after_it_is_another(change, given, capfd):
    settings = settings_of(given)
    id, words = study_of(settings, "trained on"), [f"{key}={value}" for key, value in given.items()]
    before = run_key(settings, Inputs(settings))
    change(settings.cache, id)
    assert run.main(words) == 1 and not settings.out.exists()
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and f"study {id} " in said and "run build-cache again" in said
    CacheWriter(settings.cache).finish()
    assert run_key(settings, Inputs(settings)) != before
    assert run.main(words) == 0 and "model.safetensors" in kept(settings.run_dir)


def test_what_is_done_is_not_told_from_a_cache_that_says_otherwise(given, capfd):
    """Neither a finished run, nor predictions of its weights, nor a plan's listing."""
    run_dir = train(**given)
    files, settings = kept(run_dir), settings_of(given)
    publish(settings.cache, study_of(settings, "held out"))
    words = [f"{key}={value}" for key, value in given.items()]
    for more in ([], ["mode=predict", "split=all"]):
        assert run.main([*words, *more]) == 1 and kept(run_dir) == files
    file = settings.out / "plan.yaml"
    file.write_text("runs: [{stage: bbox, folds: [0], seeds: [1]}]\n")
    assert plan([str(file), f"cache={settings.cache}", f"out={settings.out}", "dry_run=true"]) == 1
    said = capfd.readouterr().err
    assert said.count("was changed after the index was written") == said.count("error: ") == 3


@pytest.mark.parametrize("change", [publish, publish_and_finish, remove])
def test_predictions_of_a_process_that_opened_the_cache_before_are_not_kept(change, given):
    train(**given)
    settings = settings_of(given, mode="predict", split="all")
    inputs = Inputs(settings)
    task = Run(settings, inputs, model_key(settings.run_dir))
    change(settings.cache, study_of(settings, "held out"))
    with pytest.raises(CspineError) as error:
        task.predict_from(settings.run_dir)
    assert "\n" not in str(error.value) and "predictions-all.parquet" not in kept(settings.run_dir)


def test_runs_that_share_an_open_cache_are_of_one_index(given):
    """As those of trainer.predict do: a build that ends between two of them stops the second."""
    settings = settings_of(given)
    opened = Cache(settings.cache)
    assert len(opened.ids) == 6
    publish_and_finish(settings.cache, study_of(settings, "held out"))
    with pytest.raises(CacheError, match="was changed after the index was written"):
        run.run(settings, opened)


def test_tables_are_not_made_from_a_study_that_was_changed(cache, tmp_path):
    publish_segmentation(cache, Cache(cache).index.dropna(subset="segmentation_digest")["id"].iloc[0])
    with pytest.raises(CacheError, match="was changed after the index was written"):
        export.write(tmp_path, Cache(cache))
    assert not (tmp_path / "rsna22").exists()


def test_features_of_a_study_that_was_replaced_lead_to_no_weights(
    cache, tiny_settings, true_boxes, pseudo, tmp_path, capfd
):
    common = dict(cache=cache, out=tmp_path / "runs", config=tiny_settings, boxes=true_boxes)
    backbone = train(stage="slice_fracture", pseudo=pseudo, **common, **{"train.epochs": 1})
    words = dict(
        stage="study_fracture", backbone=backbone, **common, **DAYS, **{"data.bank": 1, "data.loader": "plain"}
    )
    settings = settings_of(words)
    id = Inputs(settings).train_ids()[0]
    with once_there(settings.run_dir / "checkpoint/position.json", lambda: publish(cache, id)) as acted:
        assert run.main([f"{key}={value}" for key, value in words.items()]) == 2
    assert acted.is_set() and f"error: {id}: was replaced in the cache while in use" in capfd.readouterr().err
    assert "model.safetensors" not in kept(settings.run_dir) and len(list(settings.out.glob("bank/*/*.npy"))) == 3
