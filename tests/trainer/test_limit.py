"""limit=: what the first studies take decides, once, which models answer all of them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from image_clock import ImageClock

from cache_schema import TARGETS, Cache
from cache_schema.errors import UsageError
from preprocess.phantom.generate import write_phantom
from trainer import Predictor, train
from trainer.predict import main as predict
from trainer.predict import predict_studies
from trainer.predictor.limit import Decision, Limit, Outlook, in_words, load_decision, save_decision, seconds_of
from trainer.predictor.pace import Measured, Pace, Timer
from trainer.predictor.scans import Scans
from trainer.trained.of_runs import models_of_runs

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("text", "seconds"), [("9h", 32400), ("90m", 5400), ("3600s", 3600), ("8.5h", 30600)])
def test_a_time_is_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "9 h", "-9h", "0s", "1h30m", "9d", "nan", "9e9h", "٩h", "{'h': '9'}"])
def test_another_text_is_one_line(text):
    with pytest.raises(UsageError, match="does not fit; expected a time such as 9h, 90m or 3600s"):
        seconds_of(text)


def test_times_are_said_in_words():
    assert [in_words(seconds) for seconds in (3.14, 200, 30600)] == ["3.1 s", "3.3 min", "8.5 h"]


ORDER = ("slice-2", "box-2", "study-3", "study-2")
TOOK = Measured(3, 1000, 100.0, {"slice-2": 20.0, "box-2": 5.0, "study-3": 25.0, "study-2": 25.0}, 10.0, start=30.0)


@pytest.mark.parametrize(
    ("left", "left_out"),
    [
        (1200, ()),  # (30 s + 9,000 slices x 0.1 s) x 1.1 = 1,023 s
        (1000, ("slice-2",)),  # all 10,000 slices again: (30 + 10,000 x 0.08) x 1.1 = 913
        (900, ("slice-2", "box-2")),
        (600, ("slice-2", "box-2", "study-3")),
        (100, ORDER),
        (-5, ORDER),
    ],
)
def test_the_fewest_models_are_left_out_in_their_order(left, left_out):
    outlook = Outlook(TOOK, 9000, 10_000, 1, left)
    decision = outlook.decide(ORDER)
    assert decision.left_out == left_out
    lines = outlook.lines(decision, 9)
    assert lines[0].startswith("limit: 3 studies with 1000 slices took 100.0 s with all 9 models; the rest will take ")
    assert all(name in lines[1] for name in left_out)
    assert len(lines) == 1 + bool(left_out) + (left < 305) and ("will not be done in time" in lines[-1]) == (left < 305)


def test_several_processes_share_the_rest():
    assert Outlook(TOOK + TOOK, 9000, 10_000, 2, 0).expected(()) == 30 + 900 / 2


def test_decoding_bounds_what_leaving_models_out_can_save():
    slow = Measured(3, 1000, 100.0, {"a": 90.0}, decoding=60.0)
    assert slow.rate() == 0.1 and slow.rate(["a"]) == 0.06


def test_all_models_answer_where_the_order_is_empty():
    assert Outlook(TOOK, 9000, 10_000, 1, 1.0).decide(()) == Decision((), 0.1)


def test_a_decision_of_something_else_or_damaged_is_none(tmp_path):
    made_from, decision = {"models": "1", "seconds": 5.0}, Decision(("a", "b"), 0.25)
    assert load_decision(tmp_path, made_from) is None
    save_decision(tmp_path, decision, made_from)
    assert load_decision(tmp_path, made_from) == decision
    assert load_decision(tmp_path, made_from | {"seconds": 6.0}) is None
    content = (tmp_path / "limit.json").read_bytes()
    for at in range(0, len(content), 3):
        (tmp_path / "limit.json").write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert load_decision(tmp_path, made_from) is None


def test_no_study_begins_that_would_end_too_late(tiny_cache):
    cache, now = Cache(tiny_cache), [0.0]
    studies = [cache.study(id) for id in cache.ids]
    timer = Timer(Pace(lambda: now[0], until=100.0), 1)
    taken = []
    for study in timer.in_time(studies):  # 30 slices each: 50 s for the first, with what happens once, 20 s for others
        taken.append(study.id)
        now[0] += 20 if len(taken) > 1 else 50
        timer.answered(study, {"a": now[0] / 2})
    assert taken == cache.ids[:3], "at 90 s another one would end at 110 s"
    assert timer.measured == Measured(2, 60, 40.0, {"a": 20.0}, 0.0, start=50.0)
    together = Timer(Pace(lambda: 0.0, until=100.0, rate=1.0), 1)
    assert len(list(together.in_time(studies))) == 3, "three times 30 slices are taken before any is answered"


GIVEN = {"train": {"eval_batch": "1"}, "model": {"chunk": "2"}}
"""so small that no repeats fill a last pass: images grow with slices"""
SHORT, LONG = 20, 48
"""slices of the first four studies, and of the four others"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The competition's folder: test.csv and eight studies, the first four short."""
    folder = tmp_path_factory.mktemp("scans") / "input"
    write_phantom(folder, studies=8, slices=LONG, segmented=0, syntax="explicit", seed=5, workers=1, progress=False)
    (folder / "train_images").rename(folder / "test_images")
    studies = sorted((folder / "test_images").iterdir())
    for study in studies[:4]:
        for file in sorted(study.iterdir(), key=lambda file: int(file.stem))[SHORT:]:
            file.unlink()
    rows = [(f"{study.name}_{target}", study.name, target) for study in reversed(studies) for target in TARGETS]
    table = pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    table.to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def runs(models, tiny_cache, tiny_settings, true_boxes, tmp_path_factory):
    """RUNS with four study models, three of which may be left out."""
    out = shutil.copytree(models, tmp_path_factory.mktemp("runs") / "runs")
    (backbone,) = out.glob("slice_fracture-*/fold0-seed1")
    for seed in (3, 4):
        given = dict(cache=tiny_cache, out=out, config=tiny_settings, fold=0, boxes=true_boxes, backbone=backbone)
        train(stage="study_fracture", seed=seed, **given)
    return out


class Costs(NamedTuple):
    """Images, the seconds of an ImageClock, of a short and a long study: by all models, and by those that always stay."""

    short: float
    long: float
    short_by_fewest: float
    long_by_fewest: float

    def limit(self, left_out):
        """Such that so many of three models are left out: between what this takes and what the next larger set takes."""

        def needed(count):
            share = self.short - (self.short - self.short_by_fewest) * count / 3
            slices = 4 * LONG + (4 * SHORT if count else 0)
            return self.short * 4 + 1.1 * (self.short + share / SHORT * slices)

        larger = [needed(count) for count in range(left_out)]
        assert all(needed(left_out) < each for each in larger)
        return (needed(left_out) + min(larger, default=2 * needed(0))) / 2 / 0.95


@pytest.fixture(scope="module")
def costs(scans, runs):
    every, found = models_of_runs(runs), []
    for own in (every, every.without(every.leave_out)):
        with Scans(scans / "test_images") as opened:
            predictor, seconds = Predictor(own, **GIVEN), []
            for study in opened.studies(without=[*opened.ids[:3], *opened.ids[5:]]):
                with ImageClock() as clock:
                    predictor(study)
                seconds.append(clock.seconds)
        found += seconds
    return Costs(*found)


def run(scans, runs, out, limit, clock):
    with clock:
        return predict_studies(scans, runs, out, GIVEN, limit=Limit(limit, clock, clock()))


def answered(out):
    """Number of answers, and names of the study models that gave all of them."""
    found = [json.loads(path.read_bytes())["answer"]["models"] for path in out.glob("answers/*.json")]
    assert all(each == found[0] for each in found), "one submission has one set of models"
    return len(found), [name[-5:] for name in found[0]["study_fracture"]]


@pytest.mark.check
def test_where_the_time_is_enough_all_models_answer(scans, runs, costs, tmp_path, capsys):
    table, status = run(scans, runs, tmp_path, costs.limit(0), ImageClock())
    assert status == 0 and len(table) == 8
    assert answered(tmp_path) == (8, ["seed1", "seed2", "seed3", "seed4"])
    said = capsys.readouterr().out
    assert "leaves out" not in said and "limit: 3 studies with 60 slices took" in said


@pytest.mark.check
def test_where_it_is_short_models_are_left_out_and_the_first_studies_answered_again(
    scans, runs, costs, tmp_path, capsys
):
    limit = costs.limit(3)
    table, status = run(scans, runs, tmp_path, limit, clock := ImageClock())
    said = capsys.readouterr().out
    assert status == 0 and len(table) == 8 and clock.seconds <= limit
    assert answered(tmp_path) == (8, ["seed1"])
    names = ", ".join(f"study_fracture-04F/fold0-seed{seed}" for seed in (4, 3, 2))
    assert f"limit: leaves out {names}; the others answer all studies, the first ones again" in said
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*")}
    _, status = run(scans, runs, tmp_path, limit, clock := ImageClock())
    said = capsys.readouterr().out
    assert status == 0 and clock.seconds == 0 and "8 studies are answered already" in said
    assert f"limit: leaves out {names}, as decided before" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*")} == before


@pytest.mark.check
def test_when_the_time_is_over_every_row_is_there_and_the_rest_is_named(scans, runs, costs, tmp_path, capsys):
    _, status = run(scans, runs, tmp_path, 4 * costs.short + 2 * costs.long, ImageClock())
    said = capsys.readouterr()
    assert status == 3
    assert "even the other 3 models, the fewest, will not be done in time: goes on with them" in said.out
    rows, asked = pd.read_csv(tmp_path / "submission.csv"), pd.read_csv(scans / "test.csv")
    assert rows["row_id"].tolist() == asked["row_id"].tolist() and rows["fractured"].between(0, 1).all()
    count, names = answered(tmp_path)
    late = [line.split(":")[0] for line in said.err.splitlines() if line.endswith(": not answered in time")]
    assert 4 <= count < 8 and len(late) == 8 - count and names == ["seed1"]
    values = rows.set_index("row_id")["fractured"]
    others = sorted(set(asked["StudyInstanceUID"]) - set(late))
    for target in TARGETS:
        mean = values[[f"{id}_{target}" for id in others]].mean()
        assert all(abs(values[f"{id}_{target}"] - mean) < 1e-9 for id in late)
    assert f"{len(late)} of 8 studies of test.csv get the mean of the {count} answered studies" in said.err


@pytest.mark.check
def test_without_test_csv_the_studies_that_are_left_have_no_row(scans, runs, costs, tmp_path, capsys):
    images = tmp_path / "scans"
    images.symlink_to(scans / "test_images")
    table, status = run(images, runs, tmp_path / "out", 4 * costs.short + 2 * costs.long, ImageClock())
    assert status == 3 and 4 <= len(table) < 8
    assert len(pd.read_csv(tmp_path / "out/submission.csv")) == 8 * len(table)
    assert capsys.readouterr().err.count(": not answered in time\n") == 8 - len(table)
    with pytest.raises(UsageError, match="no study was answered in time"):
        run(images, runs, tmp_path / "none", 0.0, ImageClock())


@pytest.mark.parametrize("word", ["held_out=true", "keep=true"])
def test_what_cannot_be_foretold_is_refused(word, models, tiny_cache, tmp_path, capsys):
    words = [f"source={tiny_cache}", f"models={models}", f"out={tmp_path / 'out'}", "limit=9h", word]
    assert predict(words) == 2
    assert "limit= foretells answers to new studies" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.check
def test_killed_again_and_again_the_same_command_decides_once_and_ends_with_one_set_of_models(
    scans, runs, costs, tmp_path
):
    limit = costs.limit(3)
    run(scans, runs, tmp_path / "whole", limit, clock := ImageClock())

    def started(dies):
        words = [str(dies), str(scans), str(runs), str(tmp_path / "out"), str(limit)]
        command = [sys.executable, HERE / "image_clock.py", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert started(clock.looks // 10).returncode == -9, "while the first studies are measured"
    assert not (tmp_path / "out/limit.json").exists()
    killed = started(clock.looks * 7 // 10)
    assert killed.returncode == -9 and "study_fracture-04F/fold0-seed2; the others answer" in killed.stdout
    decision = (tmp_path / "out/limit.json").read_bytes()
    ended = started(0)
    assert ended.returncode == 0 and "fold0-seed2, as decided before" in ended.stdout, ended.stderr
    assert (tmp_path / "out/limit.json").read_bytes() == decision and not list(tmp_path.glob("out/.*"))
    assert answered(tmp_path / "out") == (8, ["seed1"])
    whole, found = (pd.read_csv(tmp_path / name / "submission.csv") for name in ("whole", "out"))
    assert whole["row_id"].equals(found["row_id"]) and (whole["fractured"] - found["fractured"]).abs().max() < 1e-6


@pytest.mark.check
def test_a_limit_of_a_second_and_one_of_hours_by_the_real_clock(scans, models, tmp_path):
    def started(limit):
        words = [f"source={scans}", f"models={models}", f"out={tmp_path}", f"limit={limit}"]
        command = [sys.executable, "-m", "trainer.predict", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    begun = time.monotonic()
    short = started("1s")
    assert time.monotonic() - begun > 1 and short.returncode == 3, short.stderr
    rows, asked = pd.read_csv(tmp_path / "submission.csv"), pd.read_csv(scans / "test.csv")
    assert rows["row_id"].tolist() == asked["row_id"].tolist() and rows["fractured"].eq(0.5).all()
    assert "8 of 8 studies of test.csv get 0.5, for want of any answer" in short.stderr
    assert short.stderr.count(": not answered in time\n") == 8 and "Traceback" not in short.stderr
    long = started("10h")
    assert long.returncode == 0, long.stderr
    assert "limit: 3 studies with 60 slices took" in long.stdout and "leaves out" not in long.stdout
    assert answered(tmp_path)[0] == 8 and (tmp_path / "report.html").is_file()


@pytest.mark.check
def test_two_processes_measure_and_decide_as_one(scans, models, tmp_path):
    words = [f"source={scans}", f"models={models}", f"out={tmp_path}", "limit=10h", "processes=2", "report=false"]
    done = subprocess.run([sys.executable, "-m", "trainer.predict", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "limit: 6 studies with 232 slices took" in done.stdout and done.stdout.count("computes on ") == 1
    assert answered(tmp_path)[0] == 8
