"""Answers on disk: they are kept exactly, name no patient, and an interrupted command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from test_privacy import SECRETS, plant

from cache_schema import Cache
from preprocess.phantom.generate import write_phantom
from trainer import Predictor
from trainer.answers.answer import Flag
from trainer.answers.kept import answer_of, document_of, load_answer, save_answer
from trainer.predict import main as predict

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A study of 30 slices as DICOM."""
    folder = tmp_path_factory.mktemp("scan")
    write_phantom(
        folder / "all", studies=1, slices=30, segmented=0, syntax="explicit", seed=3, workers=1, progress=False
    )
    return next((folder / "all/train_images").iterdir())


@pytest.fixture(scope="module")
def answer(models, scan):
    return Predictor(models)(scan)


def test_an_answer_is_the_same_after_it_was_kept(answer, tmp_path):
    flagged = replace(answer, flags=(Flag("gap", "a gap", "C3"),), outside={"C7": "far"}, calibrated={"C1": 0.1})
    for one in (answer, flagged):
        found = answer_of(json.loads(json.dumps(document_of(one))))
        assert document_of(found) == document_of(one) and found.record == one.record
        assert np.array_equal(found.z, one.z) and found.curves.equals(one.curves)
    assert flagged.probabilities["C7"] is None and flagged.probabilities["C1"] == flagged.outputs["C1"]


def test_an_answer_of_something_else_or_damaged_is_none(answer, tmp_path):
    path, made_from = tmp_path / "a.json", {"study": "1", "models": "2", "settings": {}}
    assert load_answer(path, made_from) is None
    save_answer(path, answer, made_from)
    assert document_of(load_answer(path, made_from)) == document_of(answer)
    assert load_answer(path, made_from | {"models": "3"}) is None
    content = path.read_bytes()
    for at in range(0, len(content), 331):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert load_answer(path, made_from) is None


def test_nothing_of_the_patient_is_in_what_predict_writes_or_says(models, scan, tmp_path, capfd):
    source = tmp_path / "ZAPHODBEEBLE_MRN77012"
    source.mkdir()
    for number, file in enumerate(sorted(scan.iterdir()), 1):
        plant(ds := dcmread(file)).save_as(source / f"MRN77012-{number}.dcm")
        del ds
    broken = source / "MRN77012-broken.dcm"
    broken.write_bytes(b"MRN77012 is no DICOM")
    out = tmp_path / "out"
    assert predict([f"source={source}", f"models={models}", f"out={out}", "slices=true", "dicom=true"]) in (0, 3)
    told = "".join(capfd.readouterr()).replace(str(source), "")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".csv", ".html", ".json", ".parquet", ".png", ".dcm"}
    for path in files:
        content = f"{path}".replace(str(tmp_path), "").lower().encode() + path.read_bytes().lower()
        found = [word for word in SECRETS if word.encode() in content]
        assert bool(found) == ("dicom" in path.relative_to(out).parts), (path, found)
    assert not [word for word in SECRETS if word in told.lower()]


@pytest.mark.check
@pytest.mark.parametrize(("kind", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("packed", [False, True])
def test_an_interrupted_command_goes_on_and_leaves_no_process(kind, status, packed, models, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    write_phantom(source, studies=8, slices=30, segmented=0, syntax="explicit", seed=5, workers=1, progress=False)
    words = [f"source={source / 'train_images'}", f"models={models}", f"out={out}"]
    if packed:
        subprocess.run(["zip", "-qr0", tmp_path / "scan.zip", "train_images"], cwd=source, check=True)
        words[0] = f"source={tmp_path / 'scan.zip'}"
    command = [sys.executable, "-m", "trainer.predict", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 300
    while not list(out.glob("answers/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    worker = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _serves(pid, process.pid)]
    process.send_signal(getattr(signal, kind))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status, said
    assert "interrupted: run the same command to continue" in said and "Traceback" not in said
    done = len(list(out.glob("answers/*.json")))
    assert 0 < done < 8 and not list(out.glob(".unpacked*")) and not (out / "predictions.csv").exists()
    assert worker and not any(os.path.exists(f"/proc/{pid}") for pid in worker)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{done} studies are answered already" in again.stdout and (out / "predictions.csv").is_file()


def _serves(pid: int, parent: int) -> bool:
    """Whether the process decodes for `parent`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return (
            b"decode_ahead" in words
            and int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent
        )
    except OSError:
        return False


def test_models_that_do_not_fit_in_memory_take_turns_over_several_studies(models, tiny_cache):
    studies = [Cache(tiny_cache).study(id) for id in Cache(tiny_cache).ids[:3]]
    at_once, in_turns = Predictor(models), Predictor(models)
    in_turns.together, in_turns._networks.budget = 2, 1
    expected, found = list(at_once.answers(studies)), list(in_turns.answers(studies))
    assert [each.id for each in found] == [each.id for each in expected] == [study.id for study in studies]
    for one, other in zip(expected, found, strict=True):
        assert all(abs(one.outputs[name] - other.outputs[name]) < 1e-6 for name in one.outputs) and one.box == other.box
    assert len(at_once._networks.values) == 4 and len(in_turns._networks.values) == 1
