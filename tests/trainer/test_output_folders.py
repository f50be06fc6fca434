"""Where commands write: never into a cache, and never among the scans."""

import pytest

from trainer import predict, run
from trainer.look import __main__ as look_command
from trainer.plan import __main__ as plan_command
from trainer.settings.layers import load
from trainer.tables import __main__ as tables_command


def refused(main, words, capsys) -> str:
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("way", ["itself", "below", "link", "link below", "other", "dots"])
def test_nothing_is_written_into_a_cache(way, tiny_cache, tmp_path, capsys):
    before = sorted(tiny_cache.rglob("*"))
    (tmp_path / "link").symlink_to(tiny_cache, target_is_directory=True)
    (tmp_path / "plan.yaml").write_text("runs: [{stage: bbox}]")
    other = tmp_path / "other"
    other.mkdir()
    (other / "zarr.json").write_bytes((tiny_cache / "zarr.json").read_bytes())
    out = {
        "itself": tiny_cache,
        "below": tiny_cache / "runs/deep",
        "link": tmp_path / "link",
        "link below": tmp_path / "link/runs",
        "other": other / "runs",
        "dots": tmp_path / "x" / ".." / "link" / "runs",
    }[way]
    cache = f"cache={tiny_cache}"
    for main, words in (
        (run.main, ["stage=bbox", cache, f"out={out}"]),
        (plan_command.main, [tmp_path / "plan.yaml", cache, f"out={out}"]),
        (tables_command.main, [out, cache]),
        (predict.main, [f"source={tiny_cache}", f"models={tmp_path}", f"out={out}"]),
        (look_command.main, ["stage=bbox", cache, f"out={out}"]),
        (look_command.main, [f"tables={tmp_path}", cache, f"out={out}"]),
    ):
        assert "lies in the cache" in refused(main, words, capsys), main
    assert sorted(tiny_cache.rglob("*")) == before


def test_nor_through_a_run_s_own_folder_or_that_of_the_tables(tiny_cache, tmp_path, capsys):
    for name in ("bbox-01B", "tables", "logs"):
        (tmp_path / name).symlink_to(tiny_cache, target_is_directory=True)
    (tmp_path / "plan.yaml").write_text("runs: [{stage: vertebrae, variant: 02G}]")
    cache = f"cache={tiny_cache}"
    assert "lies in the cache" in refused(run.main, ["stage=bbox", cache, f"out={tmp_path}"], capsys)
    assert "lies in the cache" in refused(plan_command.main, [tmp_path / "plan.yaml", cache, f"out={tmp_path}"], capsys)
    assert "lies in the cache" in refused(tables_command.main, [tmp_path, cache], capsys)


def test_predictions_do_not_go_among_the_scans(tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    (tmp_path / "link").symlink_to(scans, target_is_directory=True)
    for out in (scans, scans / "out", tmp_path / "link/out"):
        words = [f"source={scans}", f"models={tmp_path}", f"out={out}"]
        assert f"is inside source={scans}" in refused(predict.main, words, capsys)
    assert list(scans.iterdir()) == []


def test_a_cache_may_lie_among_the_runs(tiny_cache, tmp_path):
    (tmp_path / "cache").symlink_to(tiny_cache, target_is_directory=True)
    load(["stage=bbox", f"cache={tmp_path / 'cache'}", f"out={tmp_path}"])
