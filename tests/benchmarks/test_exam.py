"""`python -m benchmarks.exam`: what it measures from a folder of DICOM files to the answer, and what its table shows."""

import json

import pytest

from benchmarks import exam
from benchmarks.predictions import packed_models, seconds_to_an_answer, untrained
from preprocess.phantom.generate import write_phantom
from trainer import Predictor
from trainer.predictor.results import PARTS
from trainer.settings.layers import load

SIZES, ORDER, REPEATS = (12,), (12, 12), exam.Repeats(rounds=1, warm=2)
SLACK = 0.1
"""seconds: decoding is timed by another process"""
MADE_UP = {
    "device": "a device",
    "networks": "demo",
    "models": ["bbox-01B/fold0-seed1"],
    "sizes": {
        "100": {
            "cold_s": [20.5],
            "warm_s": [3.0, 4.0, 5.0],
            "steps": {part: [0.25 + place, 0.5 + place, 0.75 + place] for place, part in enumerate(PARTS)},
            "in_box": 77,
        }
    },
    "stream": {"order": [100, 100, 100], "between_s": [1.0, 3.0]},
}


@pytest.fixture(scope="module")
def found():
    """Measured by real predictions of real DICOM files."""
    return exam.measure(full=False, sizes=SIZES, order=ORDER, repeats=REPEATS)


def every_list(found):
    yield found["stream"]["between_s"]
    for own in found["sizes"].values():
        yield from (own["cold_s"], own["warm_s"], *own["steps"].values())


@pytest.mark.check
def test_every_repeat_of_every_size_and_step_is_there_as_plain_values(found):
    assert json.loads(json.dumps(found)) == found
    assert found["networks"] == "demo" and found["device"]
    assert [name.partition("-")[0] for name in found["models"]] == ["bbox", "slice_fracture", "study_fracture"]
    assert list(found["sizes"]) == [str(slices) for slices in SIZES]
    for slices, own in found["sizes"].items():
        assert len(own["cold_s"]) == REPEATS.rounds
        assert set(own["steps"]) == set(PARTS)
        assert {len(values) for values in (own["warm_s"], *own["steps"].values())} == {REPEATS.rounds * REPEATS.warm}
        assert 0 < own["in_box"] <= int(slices)
    assert found["stream"]["order"] == list(ORDER)
    assert len(found["stream"]["between_s"]) == REPEATS.rounds * (len(ORDER) - 1)
    assert all(seconds > 0 for values in every_list(found) for seconds in values)


@pytest.mark.check
def test_steps_are_parts_of_a_warm_answer_and_a_fresh_process_takes_longer(found):
    for own in found["sizes"].values():
        for place, seconds in enumerate(own["warm_s"]):
            assert sum(own["steps"][part][place] for part in PARTS) <= seconds + SLACK
        assert min(own["cold_s"]) > min(own["warm_s"])  # it imports torch, too


@pytest.mark.check
def test_the_table_shows_every_measured_number(found):
    text = exam.table_of(found)
    words = text.split()
    assert all(f"{seconds:.2f}" in words for values in every_list(found) for seconds in values)
    assert all(exam.p95(values) >= exam.p50(values) for values in every_list(found))
    assert found["device"] in text and "networks: demo" in text


def test_a_table_is_of_medians_percentiles_and_what_no_step_took():
    lines = exam.table_of(MADE_UP).splitlines()
    (row,) = [line.split() for line in lines if line.split()[:2] == ["100", "77"]]
    middles = [f"{place + 0.5:.2f}" for place in range(len(PARTS))]
    rest = 4.0 - sum(place + 0.5 for place in range(len(PARTS)))
    assert row == ["100", "77", "20.50", "4.00", "4.90", *middles, f"{rest:.2f}"]
    (row,) = [line.split() for line in lines if line.startswith("100 100 100")]
    assert row == ["100", "100", "100", "30.00", "2.00", "2.90"]  # three answers, two of them within four seconds


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("ful=true", "no setting ful; did you mean full?"),
        ("full=yes", "full=yes does not fit; expected false or true"),
        ("full", "cannot read 'full'; expected key=value; see --help"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_status_2(word, line, capsys):
    assert exam.main([word]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_command_that_fails_before_its_answer_ends_the_measurement_with_what_it_said(tmp_path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/of_an_earlier_command.json").write_text("{}")
    command = ["sh", "-c", "echo no models >&2; exit 3"]
    with pytest.raises(SystemExit, match="ended with status 3: no models"):
        seconds_to_an_answer(command, tmp_path)


@pytest.mark.check
def test_full_size_networks_are_those_of_configs_untrained_and_give_an_answer(tmp_path):
    predictor = Predictor(packed_models(tmp_path / "made", exam.FULL, untrained))
    for model in predictor.models.every:
        places = {"cache": "c", "out": "o", "boxes": "b", "pseudo": "p", "backbone": "r"}
        words = [f"stage={model.stage}", *(f"{key}={value}" for key, value in places.items())]
        default = load(words, must_exist=False)
        own = model.settings({}, gpu=False)
        assert (own.variant, own.model.name, own.data.size, own.data.frames) == (
            default.variant,
            default.model.name,
            default.data.size,
            default.data.frames,
        )
    write_phantom(tmp_path / "scans", 1, slices=8, segmented=0, syntax="sv1", progress=False)
    answer = predictor(tmp_path / "scans/train_images")
    assert all(0 <= value <= 1 for value in answer.outputs.values())
