"""The throughput table: what a run holds, how it is told, and what counts as fallen."""

import json
import re
import sys
from xml.etree import ElementTree

import pytest

from benchmarks.peers import client
from benchmarks.rounds import Cost
from benchmarks.suite import figure, measure, publish
from benchmarks.suite.__main__ import main
from benchmarks.suite.against import compared, fallen
from benchmarks.suite.run import OURS, ROWS, Run, Way, load_run
from benchmarks.suite.table import NONE, markdown, text
from cache_schema.errors import UsageError


def costs(*milliseconds: float) -> list[Cost]:
    return [Cost(ms, 2 * ms) for ms in milliseconds]


def run_of(png: tuple[float, ...] = (80, 60, 50)) -> Run:
    """Two ways; the other has no triplets."""
    ways = {
        OURS: Way(costs={"window": costs(10, 20, 10), "triplet": costs(1, 1), "first": costs(500)}, bytes=100_000),
        "PNG per slice": Way(
            costs={"window": costs(*png), "first": costs(750)},
            bytes=150_000,
            missing={"triplet": "as an example"},
            note="by OpenCV",
            difference=(0.1, 2),
        ),
    }
    machine = {"cpu": "A CPU", "cores": "2 cores"}
    return Run(date="2026-01-02", commit="abc", machine=machine, settings={}, load=[0.5, 1.5], ways=ways)


def test_a_factor_is_the_median_of_paired_ratios_with_their_range():
    found = text(run_of())
    row = next(line for line in found.splitlines() if line.startswith("PNG per slice"))
    cells = re.split(r"  +", row)
    assert cells[1] == "5 (3 to 8)" and cells[3] == NONE and cells[6] == "1.5 (1.5 to 1.5)" and cells[7] == "1.50"
    ours = next(line for line in found.splitlines() if line.startswith(OURS))
    assert re.split(r"  +", ours)[1:4] == ["100", NONE, "1e+03"], "windows and triplets a CPU-second"
    assert "PNG per slice, triplet: as an example" in found and "PNG per slice: by OpenCV" in found
    assert "commit abc, 2026-01-02, A CPU, 2 cores, load 0.5 to 1.5" in found


def test_a_run_is_read_as_it_was_written_and_nothing_else_is_taken_for_one(tmp_path):
    run_of().write(tmp_path / "kept" / "run.json")
    assert load_run(tmp_path / "kept/run.json") == run_of()
    (tmp_path / "other.json").write_text(json.dumps({"date": "2026"}))
    (tmp_path / "no.json").write_text("{")
    for name in ("other.json", "no.json", "gone.json"):
        with pytest.raises(UsageError, match=name):
            load_run(tmp_path / name)


def test_what_fell_by_more_than_a_third_is_named_and_nothing_else():
    assert list(fallen(run_of((80, 45, 36)), run_of())) == [], "5 to 3.6 is less than a third"
    assert list(fallen(run_of((80, 45, 33)), run_of())) == [
        "window: PNG per slice cost 5 times cspine's, and now 3.3 times"
    ]
    gone = run_of()
    del gone.ways["PNG per slice"]
    gone.machine["cpu"] = "Another"
    said = compared(gone, run_of())
    assert (
        "nothing fell" in said
        and "not measured this time: PNG per slice" in said
        and "of another machine: A CPU, 2 cores" in said
    )


def test_the_table_is_put_between_its_marks_and_replaces_the_one_before():
    page = f"# A\n\n{publish.BEGIN}\nold\n{publish.END}\n\nthe rest\n"
    filled = publish.filled(page, run_of())
    assert (
        filled == f"# A\n\n{publish.BEGIN}\n{markdown(run_of())}\n{publish.END}\n\nthe rest\n"
        and "| PNG per slice | 5 (3" in filled
    )
    assert publish.filled(filled, run_of()) == filled
    with pytest.raises(UsageError, match="no place"):
        publish.filled("# A\n", run_of())


def test_the_figure_shows_each_way_and_is_the_same_for_the_same_run(tmp_path):
    run_of().write(tmp_path / "run.json")
    drawn = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert [figure.main([str(tmp_path / "run.json"), str(path)]) for path in drawn] == [0, 0]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    words = "".join(ElementTree.parse(drawn[0]).getroot().itertext())
    assert "PNG per slice" in words and "first batch" in words and "abc" in words


def test_a_wrong_file_is_one_line(tmp_path, capsys):
    for command, words in (
        (main, ["--against", "gone.json"]),
        (publish.main, ["gone.json"]),
        (figure.main, ["gone.json", "a.svg"]),
    ):
        assert command(words) == 2
        assert re.fullmatch(r"error: gone.json: .*\n", capsys.readouterr().err)
    assert main(["--slices", "50"]) == 2
    assert capsys.readouterr().err == "error: --slices 50: are too few for a window; expected 96 or more\n"


@pytest.mark.check
def test_a_run_measures_every_row_of_the_ways_that_are_set_up_and_names_the_others(tmp_path, monkeypatch, capsys):
    python = tmp_path / "peers/files/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "peers/files/.installed").touch()
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path / "peers")
    monkeypatch.setattr(measure, "ROUNDS", dict.fromkeys(ROWS, 1))
    monkeypatch.chdir(tmp_path)
    run_of().write(tmp_path / "kept.json")
    words = ["--ways", "npy", "zarr", "--studies", "1", "--slices", "100", "--no-exam", "--against", "kept.json"]
    assert main(words) == 0
    said = capsys.readouterr().out
    (path,) = (tmp_path / "work/bench").iterdir()
    run = load_run(path)
    assert run.ways.keys() == {OURS, ".npy memory maps", "zarr-python"} and str(path.relative_to(tmp_path)) in said
    for name in (OURS, ".npy memory maps"):
        way = run.ways[name]
        assert not way.missing and way.costs.keys() == ROWS.keys() and way.bytes and way.versions
        assert all(cost.wall_ms > 0 for found in way.costs.values() for cost in found)
        assert way.difference is not None and way.difference[0] < 0.5, "the same images"
    assert run.ways[".npy memory maps"].bytes > run.ways[OURS].bytes, "one is not compressed"
    assert "zarr-python, all: zarr-python: has no environment" in said and not run.ways["zarr-python"].costs
    assert "compared with commit abc" in said and "not measured this time: PNG per slice" in said
