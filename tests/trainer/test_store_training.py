"""Training, tables, plans, pictures and predictions from a cache in a store: what they give from a folder, and no credential."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_proxy import SOME_OF_EACH, faulty_proxy
from s3_server import environment
from safetensors.numpy import load_file

from cache_schema.store_path import StorePath
from cache_schema.tables import read_table
from preprocess.copy_cache import copy_cache
from trainer import train
from trainer.look.__main__ import main as look
from trainer.plan.__main__ import main as plan
from trainer.predict import main as predict
from trainer.tables.__main__ import main as tables

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.check


@pytest.fixture(scope="module")
def s3(started_s3):
    with environment(started_s3.environment):
        yield started_s3


@pytest.fixture(scope="module")
def stored(s3, tiny_cache):
    """The address of a copy of the tiny cache."""
    address = f"s3://{s3.bucket}/tiny"
    assert copy_cache(tiny_cache, address, tell=lambda line: None).problems == []
    return address


@pytest.fixture(scope="module")
def trained(stored, tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path_factory):
    """Where the cache was -> (RUNS, stage -> its run), a run of each stage."""
    found = {}
    for where, cache in (("folder", tiny_cache), ("store", stored)):
        out = tmp_path_factory.mktemp(where) / "runs"
        common = dict(cache=cache, out=out, config=tiny_settings, fold=0, deterministic=True)
        if where == "store":
            common["data.store_cache"] = out.parent / "read"
        runs = {"bbox": train(stage="bbox", **common)}
        common["boxes"] = true_boxes
        runs["vertebrae"] = train(stage="vertebrae", variant="04A", **common)
        runs["slice_fracture"] = train(stage="slice_fracture", pseudo=pseudo, **common)
        runs["study_fracture"] = train(stage="study_fracture", backbone=runs["slice_fracture"], **common)
        found[where] = out, runs
    return found


@pytest.mark.parametrize("stage", ["bbox", "vertebrae", "slice_fracture", "study_fracture"])
def test_every_stage_trains_from_a_store_to_the_weights_and_predictions_of_a_folder(trained, stage):
    (_, local), (_, stored) = trained["folder"], trained["store"]
    assert same_weights(local[stage], stored[stage])
    (first,), (second,) = (list(run.glob("predictions*.parquet")) for run in (local[stage], stored[stage]))
    assert read_table(first).equals(read_table(second))


def test_tables_plans_pictures_and_predictions_from_a_store_are_those_of_a_folder(
    trained, stored, tiny_cache, tiny_settings, tmp_path, capfd
):
    said = {}
    for where, cache in (("folder", tiny_cache), ("store", stored)):
        kept, _ = trained[where]
        out = tmp_path / where / "runs"
        shutil.copytree(kept, out)
        assert tables([str(out), f"cache={cache}"]) == 0
        words = [
            "stage=bbox",
            f"cache={cache}",
            f"out={tmp_path / where / 'look'}",
            f"config={tiny_settings}",
            "items=2",
        ]
        assert look(words) == 0 and look([f"tables={out}", f"cache={cache}", "report=true", "items=2"]) == 0
        assert plan([str(ROOT / "configs/plan/demo.yaml"), f"cache={cache}", f"out={out}", "dry_run=true"]) == 0
        capfd.readouterr()
        words = [f"source={cache}", f"models={out}", f"out={tmp_path / where / 'answers'}", "slices=true"]
        status = predict([*words, "report=false"])
        said[where] = status, *capfd.readouterr()
    assert said["store"][0] == said["folder"][0] == 0, said
    for name in ("predictions.csv", "slices.csv"):
        assert (tmp_path / f"store/answers/{name}").read_bytes() == (tmp_path / f"folder/answers/{name}").read_bytes()


def test_no_credential_is_in_any_file_of_a_run_nor_in_what_it_says(s3, stored, trained, tiny_settings, tmp_path):
    done = launch(["stage=bbox", f"cache={stored}", f"out={tmp_path}", f"config={tiny_settings}", "fold=1"])
    assert done.returncode == 0, done.stderr
    wrong = launch(
        ["stage=bbox", f"cache={stored}", f"out={tmp_path}", f"config={tiny_settings}", "seed=2"],
        AWS_SECRET_ACCESS_KEY="wrongwrongwrong",
    )
    assert wrong.returncode and "Traceback" not in wrong.stderr and "refuses access" in wrong.stderr
    for said in (done.stdout, done.stderr, wrong.stdout, wrong.stderr):
        assert s3.secret not in said and s3.key not in said and "wrongwrongwrong" not in said
    searched = 0
    for folder in (trained["store"][0], tmp_path):
        for path in (each for each in folder.rglob("*") if each.is_file()):
            data = path.read_bytes()
            assert s3.secret.encode() not in data and s3.key.encode() not in data, path
            searched += 1
    assert searched > 20


def test_a_failing_network_does_not_change_the_weights(s3, trained, stored, tiny_settings, tmp_path):
    words = [
        "stage=bbox",
        f"cache={stored}",
        f"out={tmp_path}",
        f"config={tiny_settings}",
        "fold=0",
        "deterministic=true",
    ]
    with faulty_proxy(s3.endpoint, SOME_OF_EACH) as proxy:
        done = launch(words, AWS_ENDPOINT_URL=proxy.address)
        assert done.returncode == 0 and sum(proxy.injected.values()) > 5, done.stderr
    (run,) = tmp_path.glob("bbox-*/fold0-seed1")
    assert same_weights(run, trained["folder"][1]["bbox"])


def test_a_run_whose_epochs_are_read_from_the_local_copy_asks_the_store_for_each_chunk_once(
    s3, stored, trained, tiny_settings, tmp_path
):
    words = ["stage=bbox", f"cache={stored}", f"out={tmp_path / 'runs'}", f"config={tiny_settings}", "train.epochs=3"]
    with faulty_proxy(s3.endpoint, type(SOME_OF_EACH)()) as proxy:
        done = launch([*words, f"data.store_cache={tmp_path / 'read'}"], AWS_ENDPOINT_URL=proxy.address)
        assert done.returncode == 0, done.stderr
        read = [(path, part) for method, path, part, _ in proxy.requests if method == "GET" and "/pixels/c." in path]
    assert read and len(read) == len(set(read))
    assert StorePath(stored).is_dir()


def launch(words: list[str], **changes: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "trainer/run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | changes)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)
