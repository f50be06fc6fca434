"""`trainer predict watch=IN`: each study that arrives is answered once, whole, and also after a crash."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watching import QUIET, Watched, documents, same_answers

from preprocess.phantom.generate import write_phantom
from trainer.healthy import main as healthy
from trainer.predict import main
from trainer.predictor.watch import DEATHS
from trainer.predictor.watch_state import Done, WatchState
from trainer.process.heartbeat import Heartbeat


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Four studies of 12 slices as DICOM, a folder each."""
    root = tmp_path_factory.mktemp("arriving")
    write_phantom(root, studies=4, slices=12, segmented=0, syntax="explicit", seed=21, workers=1, progress=False)
    return root / "train_images"


@pytest.fixture
def watched(models, tmp_path):
    (tmp_path / "in").mkdir()
    with Watched(tmp_path / "in", tmp_path / "out", models) as started:
        yield started


@pytest.mark.check
def test_studies_in_pieces_are_answered_once_also_after_a_kill(watched, scans, models, tmp_path, capfd):
    watched.start()
    feeder = watched.feed(scans, seed=5)
    watched.wait_for(lambda: len(watched.answers()) >= 1)
    watched.kill()
    watched.start()
    fed = json.loads(feeder.communicate()[0])
    watched.wait_for(lambda: len(watched.table()) == 4)
    assert watched.answered_more_than_once(fed) == {} and watched.answers() == set(fed)
    assert healthy([str(watched.out)]) == 0
    words = [f"watch={watched.into}", f"models={models}", f"out={watched.out}"]
    assert main(words) == 2 and "another watch writes into it: process" in capfd.readouterr().err
    assert watched.end(signal.SIGTERM) == 143
    assert healthy([str(watched.out)]) == 1, "none is at work"
    assert watched.output().endswith("interrupted: run the same command to continue\n")
    assert same_answers(watched, tmp_path / "whole", main) == 4
    assert not list(watched.out.rglob("*.part")) and not list(watched.out.rglob(".unpacked-*"))
    left = {path.name: path.read_text() for path in (watched.out / ".watch").iterdir()}
    assert len(left) > 4 and not [name for name, text in left.items() if ".dcm" in name + text]


@pytest.mark.check
def test_a_study_that_grows_is_answered_anew_and_one_that_is_tidied_up_is_not(watched, scans, tmp_path):
    first, second, deadly = sorted(scans.iterdir())[:3]
    late = sorted(first.iterdir())[-1]
    for _ in range(DEATHS):
        WatchState(watched.out).begin(deadly.name)  # as processes leave it that die on a study
    for folder in (first, second, deadly):
        shutil.copytree(folder, watched.into / folder.name)
    (watched.into / first.name / late.name).unlink()
    (bad := watched.into / second.name / "1.dcm").write_bytes(bad.read_bytes()[:-1000])
    (watched.into / "nothing.dcm").write_bytes(b"no header")
    watched.start()
    watched.wait_for(lambda: len(watched.answers()) == 1 and len(watched.refused()) == 3)
    before = documents(watched.out)[first.name]
    assert {row["reason"] for row in watched.refused()} == {"pixel_length", "not_dicom", "worker_died"}
    shutil.copy(late, watched.into / first.name)
    shutil.copy(second / "1.dcm", bad)
    watched.wait_for(lambda: len(watched.table()) == 2 and "anew" in watched.output())
    after = documents(watched.out)
    assert after[first.name]["record"]["slices"] == before["record"]["slices"] + 1
    assert [row["id"] for row in watched.refused()] == [deadly.name, "file 37"]
    (watched.into / first.name / late.name).unlink()
    looks = watched.looks()
    watched.wait_for(lambda: watched.looks() > looks + QUIET + 2)
    assert documents(watched.out) == after
    assert watched.end(signal.SIGINT) == 130
    said = watched.output()
    assert said.count(f"{second.name}: refused: ") == 1 and said.count("file 36: refused: ") == 1
    assert said.count(": answered") == 3 and "SECRET" not in said


def test_what_is_done_is_known_to_the_next_process(tmp_path):
    state, files = WatchState(tmp_path), frozenset({1, 2, 3})
    state.keep("1.2", Done("1.2", files, "models"))
    state.keep("1.3", Done("1.3", files, reason="pixel_length", message="too short"))
    state.begin("1.4")
    again = WatchState(tmp_path)
    for known in (state, again):
        assert known.is_done("1.2", files, "models") and known.is_done("1.2", frozenset({1}), "models")
        assert not known.is_done("1.2", files | {4}, "models") and not known.is_done("1.2", files, "others")
        assert known.is_done("1.3", files, "others") and not known.is_done("1.3", frozenset({1}), "others")
        assert known.is_refused("1.3") and not known.is_refused("1.2") and known.deaths("1.4") == 1
        assert not known.is_done("1.5", files, "models")
    again.end("1.4")
    assert WatchState(tmp_path).deaths("1.4") == 0
    for path in tmp_path.glob(".watch/study-*"):
        path.write_text("{}")
    assert not WatchState(tmp_path).is_done("1.2", files, "models")


def test_the_watch_is_healthy_while_its_own_steps_come_in_time(tmp_path, capsys):
    assert healthy([str(tmp_path)]) == 1 and "no watch is at work" in capsys.readouterr().err
    heart = Heartbeat(tmp_path)
    heart.beat("looking", 60)
    assert healthy([str(tmp_path)]) == 0 and "looking, heard of 0 s ago" in capsys.readouterr().out
    heart.beat("answering", 0)
    time.sleep(0.01)
    assert healthy([str(tmp_path)]) == 1 and "while answering; expected at most 0 s" in capsys.readouterr().err
    heart.end()
    assert healthy([str(tmp_path)]) == 1
    assert healthy([]) == 2 and healthy(["out=nothing"]) == 2


def test_the_health_check_imports_nothing_that_takes_time():
    code = "import sys, trainer.healthy; sys.exit(bool({'torch', 'pandas', 'numpy', 'cache_schema'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["source=SOURCE"], "source= and watch= are both given; expected one of them"),
        (["processes=2"], "no setting processes with watch="),
        (["quiet=0"], "quiet='0' does not fit; expected a whole number from 1 to 86400"),
        (["watch=gone"], "watch=gone: no such folder; expected the folder that studies arrive in"),
        (["out=IN/out"], "is inside watch=IN; expected a folder outside it"),
    ],
)
def test_a_mistake_is_one_line(words, line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("IN").mkdir()
    given = {"watch": "IN", "models": "RUNS", "out": "OUT"} | dict(word.split("=") for word in words)
    assert main([f"{key}={value}" for key, value in given.items()]) == 2
    said = capfd.readouterr()
    assert line in said.err and len(said.err.splitlines()) == 1 and not said.out
