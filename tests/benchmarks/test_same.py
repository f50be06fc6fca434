"""`python -m benchmarks.same A B`: what it finds between two work folders, and what it leaves out."""

import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import same
from cache_schema import Cache
from cache_schema.layout import chunk_file
from preprocess.build.build_cache import build_cache
from preprocess.phantom.generate import write_phantom

RUN = "runs/bbox-01B/fold0-seed1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A real cache, and a run's files around it."""
    folder = tmp_path_factory.mktemp("work") / "a"
    write_phantom(folder / "rsna", studies=1, slices=12, segmented=0, syntax="explicit", progress=False)
    build_cache(folder / "rsna", folder / "cache", tell=lambda line: None)
    (folder / RUN).mkdir(parents=True)
    (folder / "runs/tables").mkdir()
    save_file({"net.weight": np.eye(3), "net.bias": np.full(2, np.nan)}, folder / RUN / "model.safetensors")
    table = pd.DataFrame({"id": ["a", "b"], "C1": [0.5, np.nan]})
    table.to_parquet(folder / RUN / "predictions.parquet")
    table.to_csv(folder / "runs/tables/submission.csv")
    (folder / "runs/tables/scores.json").write_text("[]")
    (folder / RUN / "metrics.jsonl").write_text("seconds differ\n")
    return folder


@pytest.fixture
def both(made, tmp_path):
    return made, shutil.copytree(made, tmp_path / "b")


def test_equal_folders_differ_in_nothing_and_file_times_do_not_count(both, capsys):
    a, b = both
    next(path for path in (b / "cache/.build").rglob("*") if path.is_file()).write_bytes(b"other times")
    (b / RUN / "metrics.jsonl").write_text("other seconds\n")
    assert same.main([str(a), str(b)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("2 tensors, 1 tables, 2 scores and CSV files; 0 differences")
    files = sum(path.is_file() and ".build" not in path.parts for path in (a / "cache").rglob("*"))
    assert line.startswith(f"compared {files} files of the cache, ")


def one_bit_of_a_chunk(b):
    path = b / "cache" / Cache(b / "cache").ids[0] / chunk_file("pixels", 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return f"differs: {path.relative_to(b)}"


def one_weight(b):
    tensors = load_file(b / RUN / "model.safetensors")
    tensors["net.weight"][0, 0] = np.nextafter(1, 2)
    save_file(tensors, b / RUN / "model.safetensors")
    return f"differs: {RUN}/model.safetensors, net.weight"


def one_tensor_less(b):
    save_file({"net.weight": np.eye(3)}, b / RUN / "model.safetensors")
    return f"differs: {RUN}/model.safetensors, net.bias"


def one_value_of_a_table(b):
    pd.DataFrame({"id": ["a", "b"], "C1": [0.5, 0.5]}).to_parquet(b / RUN / "predictions.parquet")
    return f"differs: {RUN}/predictions.parquet"


def one_letter_of_a_csv(b):
    (b / "runs/tables/submission.csv").write_text("id\n")
    return "differs: runs/tables/submission.csv"


def one_file_less(b):
    (b / "runs/tables/scores.json").unlink()
    return "only in {a}: runs/tables/scores.json"


def one_file_more(b):
    shutil.copytree(b / RUN, b / "runs/bbox-01B/fold1-seed1", ignore=shutil.ignore_patterns("*.safetensors"))
    return f"only in {b}: runs/bbox-01B/fold1-seed1/predictions.parquet"


@pytest.mark.parametrize(
    "change",
    [
        one_bit_of_a_chunk,
        one_weight,
        one_tensor_less,
        one_value_of_a_table,
        one_letter_of_a_csv,
        one_file_less,
        one_file_more,
    ],
)
def test_one_change_is_one_line_and_exit_status_1(both, change, capsys):
    a, b = both
    expected = change(b).replace("{a}", str(a))
    assert same.main([str(a), str(b)]) == 1
    line, counts = capsys.readouterr().out.splitlines()
    assert line == expected
    assert counts.endswith("; 1 differences")


def test_a_folder_without_runs_is_told_in_one_line(made, tmp_path, capsys):
    assert same.main([str(made), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: ") and said.count("\n") == 1
