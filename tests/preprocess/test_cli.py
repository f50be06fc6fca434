"""The command line is a contract: commands, options, exit statuses, and one line for whatever the user can mend."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import typer
from tiny_rsna import IDS, files_of, write_rsna

from cache_schema import TARGETS, Cache
from cache_schema.tables import table_meta, write_table
from preprocess.build.build_cache import build_cache
from preprocess.cli import app, run
from preprocess.phantom.generate import write_phantom

COMMANDS = {
    "phantom": ["OUT", "--prevalence", "--seed", "--segmented", "--slices", "--studies", "--syntax", "--workers"],
    "build-cache": [
        *("SOURCE", "CACHE", "--folds", "--labels", "--limit", "--max-refused", "--paths", "--pseudonymise"),
        *("--scheduler", "--segmentations", "--shard", "--trust-mtime", "--workers"),
    ],
    "labels": ["CACHE", "CSV", "--folds", "--pseudonymise"],
    "set-boxes": ["CACHE", "TABLE"],
    "verify": ["CACHE", "--sample"],
    "inspect": ["CACHE", "[ID]", "--json", "--png"],
    "crop": ["CACHE", "OUT", "--boxes", "--margin", "--shard"],
    "copy": ["CACHE", "OUT", "--shard"],
    "download": ["DEST"],
}


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    return write_rsna(tmp_path_factory.mktemp("cli") / "rsna")


@pytest.fixture(scope="module")
def built(rsna, tmp_path_factory):
    cache = tmp_path_factory.mktemp("built") / "cache"
    assert run(["build-cache", str(rsna), str(cache), "--workers", "1"]) == 0
    return cache


@pytest.fixture
def cache(built, tmp_path):
    return shutil.copytree(built, tmp_path / "cache")


def test_commands_and_options_are_those_of_the_contract():
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
        options = sorted(o for p in command.params if p.param_type_name == "option" for o in p.opts if o != "--help")
        found[name] = arguments + options
    assert found == COMMANDS


def test_defaults_are_those_of_the_contract():
    commands = typer.main.get_command(app).commands
    phantom = {p.name: p.default for p in commands["phantom"].params}
    expected = {"studies": 24, "slices": 96, "segmented": 16, "prevalence": None, "syntax": "mixed", "seed": 0}
    assert {name: phantom[name] for name in expected} == expected
    build = {p.name: p.default for p in commands["build-cache"].params if p.param_type_name == "option"}
    assert build.pop("paths") is False and build.pop("trust_mtime") is False and set(build.values()) == {None}


@pytest.mark.parametrize(
    ("name", "function", "python_only"),
    [
        ("build-cache", build_cache, {"pixels_only", "prune", "tell"}),
        ("phantom", write_phantom, {"progress"}),
    ],
)
def test_a_command_passes_its_parameters_to_the_function_of_its_name(name, function, python_only):
    command = typer.main.get_command(app).commands[name]
    asked = {p.name: p.default for p in command.params if p.name != "help"}
    taken = inspect.signature(function).parameters
    assert asked.keys() == taken.keys() - python_only
    defaults = {key: value for key, value in asked.items() if taken[key].default is not inspect.Parameter.empty}
    assert defaults == {key: taken[key].default for key in defaults}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["biuld-cache", "a", "b"], "did you mean build-cache"),
        (["slice"], "no command 'slice'"),
        (["crop", "{cache}", "{new}"], "set-boxes"),
        (["crop", "{cache}", "{new}", "--margin", "-1"], "--margin"),
        (["crop", "{cache}", "{new}", "--boxes", "{new}.parquet"], "no such table"),
        (["crop", "{rsna}", "{new}"], "is not a cache"),
        (["build-cache", "{rsna}", "{new}", "--fold", "2"], "did you mean --folds"),
        (["build-cache", "{rsna}"], "CACHE"),
        (["build-cache", "{rsna}x", "{new}"], "no such file or folder"),
        (["build-cache", "{rsna}", "{new}", "--workers", "no"], "--workers"),
        (["build-cache", "{rsna}", "{new}", "--workers", "0"], "--workers"),
        (["build-cache", "{rsna}", "{new}", "--labels", "{new}.csv"], "no such file"),
        (["build-cache", "{rsna}", "{new}", "--segmentations", "{new}"], "no such folder"),
        (["build-cache", "{rsna}", "{rsna}"], "neither empty nor a cache"),
        (["verify", "{new}"], "no such folder"),
        (["verify", "{rsna}"], "is not a cache"),
        (["verify", "{cache}", "--sample", "2"], "--sample"),
        (["inspect", "{cache}", "1.2"], "no study 1.2"),
        (["inspect", "{cache}", "--png", "{new}.png"], "--png"),
        (["labels", "{cache}", "{new}.csv"], "no such file"),
        (["set-boxes", "{cache}", "{new}.parquet"], "no such table"),
        (["phantom", "{rsna}"], "not an empty folder"),
        (["phantom", "{new}", "--syntax", "sv2"], "sv1"),
        (["phantom", "{new}", "--seed", "-1"], "--seed"),
        (["phantom", "{new}", "--workers", "0"], "--workers"),
        (["build-cache", "{rsna}", "{new}", "--scheduler", "nope"], "expected tcp://HOST:PORT"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_exit_2(arguments, words, rsna, built, tmp_path, capfd):
    names = {"rsna": rsna, "cache": built, "new": tmp_path / "new"}
    assert run([argument.format(**names) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "new").exists()


MAY_BE_ADDRESS = {
    *((name, "CACHE") for name in COMMANDS),
    *(("build-cache", "SOURCE"), ("crop", "OUT"), ("copy", "OUT")),
}
ADDRESSES = ["s3://bucket/a", "gs://bucket/a", "http://host/a", "file:///a", "S3://bucket"]


def calls_with_an_address():
    """For every parameter of every command but flags, schedulers and what may be an address: a call that is right but for one."""
    for name, command in typer.main.get_command(app).commands.items():
        for wrong in command.params:
            if getattr(wrong, "is_flag", False) or wrong.name == "scheduler" or (name, wrong.metavar) in MAY_BE_ADDRESS:
                continue
            call = [name]
            for param in command.params:
                if param.param_type_name == "argument" and (param.required or param is wrong):
                    call.append("{address}" if param is wrong else "{new}")
            if wrong.param_type_name == "option":
                yield [*call, wrong.opts[0], "{address}"]
                yield [*call, wrong.opts[0] + "={address}"]
            else:
                yield call


def test_an_address_where_a_path_is_meant_is_one_line_and_makes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    calls = list(calls_with_an_address())
    assert {call[0] for call in calls} == set(COMMANDS) and len(calls) > 20
    for number, call in enumerate(calls):
        address = ADDRESSES[number % len(ADDRESSES)]
        assert run([word.format(address=address, new=tmp_path / "new") for word in call]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith(f"error: {address}: is an address") and err.count("\n") == 1, (call, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///a", "is of an unknown scheme"),
        ("http://host/a", "is plain http"),
        ("s3://user:secret@bucket/a", "credentials"),
        ("s3://", "names no bucket"),
    ],
)
def test_an_address_of_no_store_is_one_line_and_repeats_no_secret(address, words, tmp_path, capfd):
    for call in (
        ["verify", address],
        ["build-cache", address, str(tmp_path / "new")],
        ["crop", str(tmp_path), address],
    ):
        assert run(call) == 2
        out, err = capfd.readouterr()
        assert out == "" and words in err and "secret" not in err and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_the_address_of_a_scheduler_is_one(rsna, tmp_path, capfd):
    for words in (["--scheduler", "tcp://"], ["--scheduler=tcp://"]):
        run(["build-cache", str(rsna) + "x", str(tmp_path / "new"), *words])
        assert "no such file or folder" in capfd.readouterr().err


def test_without_a_command_they_are_listed(capfd):
    assert run([]) == 2
    out, err = capfd.readouterr()
    assert err == "" and "build-cache" in out and out.count("\n") > 10


def test_verify_names_what_is_wrong_and_exits_1(cache, capsys):
    assert run(["verify", str(cache)]) == 0 and capsys.readouterr().out == ""
    os.remove(cache / IDS[1] / "pixels" / "c.0.0.0")
    assert run(["verify", str(cache), "--sample", "0"]) == 1
    assert capsys.readouterr().out == f"{IDS[1]}: pixels/c.0.0.0 is missing\n"


def test_a_build_with_refused_studies_exits_3_and_1_beyond_the_allowed_number(rsna, tmp_path, capsys):
    source = shutil.copytree(rsna, tmp_path / "rsna")
    broken = source / "train_images" / IDS[0] / "4.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    command = ["build-cache", str(source), str(tmp_path / "cache"), "--workers", "1"]
    assert run(command) == 3
    assert "3 new, 0 unchanged, 1 refused, see" in capsys.readouterr().out
    assert run([*command, "--max-refused", "0"]) == 1
    assert run(["verify", str(tmp_path / "cache")]) == 0


def test_inspect_shows_a_cache_and_a_study(cache, tmp_path, capsys):
    assert run(["inspect", str(cache), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["studies"], about["slices"], about["segmented"]) == (4, 40, 2)
    assert about["slice_spacing_mm"] == {"2 to 3": 4}
    assert about["fractured"]["C1"] == 2 and about["labelled"] == 4
    csv = pd.DataFrame({"StudyInstanceUID": IDS[:1], "patient_overall": [1], "C1": [None]})
    csv.reindex(columns=["StudyInstanceUID", *TARGETS]).to_csv(tmp_path / "few.csv", index=False)
    assert run(["labels", str(cache), str(tmp_path / "few.csv")]) == 0 and capsys.readouterr()
    assert run(["inspect", str(cache), "--json"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert few["labelled"] == 1 and few["fractured"] == {target: None for target in TARGETS} | {"patient_overall": 1}
    assert run(["inspect", str(cache)]) == 0 and "studies" in capsys.readouterr().out
    assert run(["inspect", str(cache), IDS[0], "--json", "--png", str(tmp_path / "sheet.png")]) == 0
    assert json.loads(capsys.readouterr().out) == Cache(cache).record(IDS[0]).model_dump(mode="json")
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_UNCHANGED)
    tiles = sheet.reshape(4, 192, 6, 192).max(axis=(1, 3)).ravel()
    assert np.count_nonzero(tiles) == 10  # a tile for each of the study's slices


def test_labels_are_replaced_and_folds_only_when_asked_for(cache, tmp_path, capsys):
    before, studies = Cache(cache).labels, {n: d for n, d in files_of(cache).items() if n.startswith("1.2")}
    table = pd.DataFrame({"StudyInstanceUID": IDS[:3], "patient_overall": 1, **{f"C{n}": 1 for n in range(1, 8)}})
    table.assign(fold=[2, 1, 0]).to_csv(tmp_path / "new.csv", index=False)
    assert run(["labels", str(cache), str(tmp_path / "new.csv")]) == 0
    assert "3 of 4 studies have labels" in capsys.readouterr().out
    labels = Cache(cache).labels
    assert labels["C4"].tolist() == [1, 1, 1, pd.NA] and labels["fold"].equals(before["fold"])
    assert table_meta(cache / "labels.parquet")["made_by"] == "preprocess labels"
    assert run(["labels", str(cache), str(tmp_path / "new.csv"), "--folds", str(tmp_path / "new.csv")]) == 0
    assert Cache(cache).labels["fold"].tolist() == [2, 1, 0, pd.NA]
    assert run(["labels", str(cache), str(tmp_path / "new.csv"), "--folds", "2"]) == 0
    assert sorted(Cache(cache).labels["fold"]) == [0, 0, 1, 1]
    assert {n: d for n, d in files_of(cache).items() if n.startswith("1.2")} == studies
    assert run(["verify", str(cache)]) == 0


def test_a_train_csv_found_by_itself_does_not_argue_with_labels_given_on_purpose(cache, rsna, tmp_path):
    table = pd.read_csv(rsna / "train.csv").assign(patient_overall=1, C7=1)
    table.to_csv(tmp_path / "new.csv", index=False)
    assert run(["build-cache", str(rsna), str(cache), "--labels", str(tmp_path / "new.csv")]) == 2
    assert run(["labels", str(cache), str(tmp_path / "new.csv")]) == 0
    assert run(["build-cache", str(rsna), str(cache)]) == 0
    assert Cache(cache).labels["C7"].tolist() == [1, 1, 1, 1]
    assert run(["build-cache", str(rsna), str(cache), "--labels", str(rsna / "train.csv")]) == 2


def test_boxes_of_a_table_become_the_snapshot(cache, tmp_path, capsys):
    boxes = pd.DataFrame(
        {"id": IDS[:2], "x0": 1, "y0": 2, "x1": 9, "y1": 8, "z_from": 0, "z_to": 10, "source": "model"}
    )
    digest = write_table(tmp_path / "boxes.parquet", boxes, "a test", {})
    assert run(["set-boxes", str(cache), str(tmp_path / "boxes.parquet")]) == 0
    assert "2 of 4 studies have a box" in capsys.readouterr().out
    assert Cache(cache).record(IDS[0]).study_box.made_by == digest and run(["verify", str(cache)]) == 0


def test_a_phantom_becomes_a_sound_cache(tmp_path, capsys):
    command = ["phantom", str(tmp_path / "rsna"), "--studies", "2", "--slices", "8", "--segmented", "5"]
    assert run([*command, "--workers", "1"]) == 0
    assert "2 studies in" in (out := capsys.readouterr().out) and "2 with a segmentation" in out
    assert run(["build-cache", str(tmp_path / "rsna"), str(tmp_path / "cache"), "--workers", "1", "--folds", "2"]) == 0
    assert run(["verify", str(tmp_path / "cache")]) == 0
    cache = Cache(tmp_path / "cache")
    assert cache.index["slices"].tolist() == [8, 8] and sorted(cache.labels["fold"]) == [0, 1]
    assert cache.index["segmentation_digest"].notna().sum() == 2


def test_an_interrupted_build_says_so_in_one_line_and_exits_130(rsna, tmp_path):
    command = [sys.executable, "-m", "preprocess", "build-cache", str(rsna), str(tmp_path / "cache"), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while "Dask dashboard" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if not line.startswith(("1 of", "2 of", "3 of"))]
    assert process.returncode == 130 and lines == ["error: interrupted; run the same command again to continue"]
