"""Features kept on disk stand for the images they were made from."""

import hashlib
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from safetensors.numpy import load_file

from cache_schema.errors import UsageError
from cache_schema.tables import read_table
from trainer import train
from trainer.tuning.feature_bank import read_features, write_features


@pytest.fixture(scope="module")
def given(tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path_factory):
    """Settings of a study_fracture run on a backbone that was trained a little."""
    common = dict(cache=tiny_cache, config=tiny_settings, boxes=true_boxes)
    out = tmp_path_factory.mktemp("backbone")
    backbone = train(stage="slice_fracture", out=out, pseudo=pseudo, **common, **{"train.epochs": 1})
    return dict(stage="study_fracture", backbone=backbone, **common, **{"train.epochs": 3, "data.loader": "plain"})


def kept(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("bank/*/*.npy")}


def test_a_bank_of_as_many_draws_as_epochs_changes_nothing_and_is_used_again(given, tmp_path, capsys):
    plain, banked = (train(out=tmp_path / str(count), **given, **{"data.bank": count}) for count in (0, 3))
    expected, found = (load_file(run / "model.safetensors") for run in (plain, banked))
    assert max(np.abs(found[name] - expected[name]).max() for name in expected) < 1e-5
    tables = [read_table(run / "predictions.parquet").drop(columns="id") for run in (plain, banked)]
    assert np.abs(tables[0] - tables[1]).to_numpy().max() < 1e-5
    files = kept(banked.parents[1])
    assert len(files) == 3 * 3  # studies, augmentations
    assert np.load(next((tmp_path / "3/bank").glob("*/*.npy"))).dtype == np.float32
    assert capsys.readouterr().out.count("bank: features of augmentation") == 3
    train(out=tmp_path / "3", **given, **{"data.bank": 3, "train.lr": 1e-3})
    assert kept(tmp_path / "3") == files and "bank: features" not in capsys.readouterr().out
    train(out=tmp_path / "3", **given, **{"data.bank": 2, "seed": 2})
    assert len(kept(tmp_path / "3")) == 9 + 3 * 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model.batch_norm": "train"}, "data.bank needs a CNN that never changes; expected model.batch_norm=eval"),
        ({"stage": "bbox"}, "data.bank keeps features of a frozen CNN; expected stage=study_fracture"),
    ],
)
def test_a_bank_is_refused_where_features_do_not_last(change, line, given, tmp_path):
    with pytest.raises(UsageError, match=line):
        train(out=tmp_path, **{**given, "data.bank": 2, **change})


def test_two_runs_may_write_the_same_features_at_once(tmp_path):
    path, features, failed = tmp_path / "bank" / "features.npy", np.ones((3, 4), np.float32), []

    def write_often():
        try:
            for _ in range(50):
                write_features(path, features)
        except OSError as error:
            failed.append(error)

    writers = [Thread(target=write_often) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and np.array_equal(np.load(path), features) and list(path.parent.iterdir()) == [path]


class Hostile:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_features_that_are_damaged_are_made_again_with_a_line_and_a_pickle_among_them_runs_nothing(
    given, tmp_path, capsys
):
    one = {"data.bank": 1, "train.batch": 1, "train.micro_batch": 1}
    first = train(out=tmp_path / "runs", **given, **one)
    files = sorted(tmp_path.glob("runs/bank/*/*.npy"))
    before = [read_features(path) for path in files]
    flipped, cut, hostile = files
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:100])
    np.save(hostile, np.array([Hostile(tmp_path / "touched")], object), allow_pickle=True)
    data = hostile.read_bytes()
    np.load(hostile, allow_pickle=True)
    (tmp_path / "touched").unlink()  # so it would be run
    hostile.write_bytes(data + hashlib.sha256(data).digest())
    (first / "model.safetensors").unlink()
    capsys.readouterr()
    again = train(out=tmp_path / "runs", **given, **one)
    said = capsys.readouterr().err
    assert all(said.count(f"{path}: is missing or does not match its digest; it is made again") == 1 for path in files)
    assert all(np.allclose(read_features(path), own, atol=1e-5) for path, own in zip(files, before, strict=True))
    assert not (tmp_path / "touched").exists() and (again / "model.safetensors").is_file()
