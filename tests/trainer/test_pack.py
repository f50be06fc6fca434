"""One file of models: packed, carried, checked, and used as the runs that it was made from."""

import re
import shutil
import zipfile
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch

from cache_schema import TARGETS, Cache
from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import read_table
from preprocess.labels import replace_labels
from preprocess.phantom.generate import write_phantom
from trainer import Predictor
from trainer.answers.anatomy import LevelsFound
from trainer.inspect import main as inspect
from trainer.pack import main as pack
from trainer.predict import main as predict
from trainer.tables.settings import TableSettings
from trainer.trained.of_runs import models_of_runs
from trainer.trained.pack_file import CARD, MANIFEST, PackFile, models_of_pack


@pytest.fixture(scope="module")
def packed(models, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "models.cspine"
    assert pack([str(models), f"out={file}"]) == 0
    return file


def test_the_same_runs_give_the_same_bytes_from_any_folder(models, packed, tmp_path):
    moved = shutil.copytree(models, tmp_path / "moved/far/away")
    assert pack([str(moved), f"out={tmp_path / 'again.cspine'}"]) == 0
    assert (tmp_path / "again.cspine").read_bytes() == packed.read_bytes()


def test_its_weights_are_those_of_the_runs_and_a_shared_backbone_is_kept_once(models, packed):
    runs, file = models_of_runs(models), models_of_pack(packed)
    assert file.names == runs.names and {stage: len(each) for stage, each in file.names.items()} == {
        "bbox": 1,
        "slice_fracture": 1,
        "study_fracture": 2,
    }
    for stage, own in runs.by_stage.items():
        for one, other in zip(own, file.by_stage[stage], strict=True):
            expected, found = one.tensors(), other.tensors()
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[name], found[name]) for name in expected)
    names = zipfile.ZipFile(packed).namelist()
    assert sum(name.startswith("backbones/") for name in names) == 1, "three models share one CNN"
    assert {entry.compress_type for entry in zipfile.ZipFile(packed).infolist()} == {zipfile.ZIP_STORED}


def test_it_names_no_path_host_or_study(models, packed, tiny_cache):
    content = packed.read_bytes()
    words = [str(models), str(tiny_cache), str(tiny_cache.parent), *Cache(tiny_cache).ids]
    assert not [word for word in words if word.encode() in content]
    file = models_of_pack(packed)
    ids, runs = Cache(tiny_cache).ids, models_of_runs(models)
    assert runs.seen(ids) and file.seen(ids) == runs.seen(ids) and not file.seen(["1.2.3"])
    for one, other in zip(runs.every, file.every, strict=True):
        assert one.seen(ids) == other.seen(ids) and one.name == other.name


def test_the_card_says_what_is_known_and_what_is_not(packed, capsys):
    assert inspect([str(packed)]) == 0
    said = capsys.readouterr().out
    for words in ("not a medical device", "bbox-01B/fold0-seed1", "holds fold 0 out", "Apache-2.0", "unknown"):
        assert words in said
    assert f"torch {version('torch')}" in said
    assert "from backbone slice_fracture-04F/fold0-seed1" in said
    assert said.splitlines()[-1] == f"{packed}: every byte matches its digest"


def test_every_flipped_byte_and_every_cut_is_one_line(packed, tmp_path):
    content, own = bytearray(packed.read_bytes()), tmp_path / "own.cspine"
    size, entries = len(content), PackFile(packed).entries
    inner = {start + length // 2 for start, length in entries.values()}
    edges = {
        *range(0, 120, 3),
        *range(size - 900, size, 5),
        *range(size - 110, size, 3),
        *(start - 1 for start, _ in entries.values()),
    }
    for at in sorted(inner | edges):
        content[at] ^= 16
        own.write_bytes(content)
        content[at] ^= 16
        with pytest.raises(CacheError) as error:
            PackFile(own).check()
        assert error.value.exit_status == 1 and str(error.value).count("\n") == 0
    for length in (size - 1, size - 80, size // 2, 100, 60):
        own.write_bytes(content[:length])
        with pytest.raises(CacheError, match="is damaged"):
            PackFile(own)


def test_damage_in_weights_is_found_as_they_are_loaded(packed, tiny_cache, tmp_path, capsys):
    content, own = bytearray(packed.read_bytes()), tmp_path / "own.cspine"
    start, length = next(span for name, span in PackFile(packed).entries.items() if name.startswith("backbones/"))
    content[start + length // 2] ^= 1
    own.write_bytes(content)
    assert predict([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}"]) == 1
    assert re.search(
        r"error: .*own.cspine: is damaged: backbones/\w+.safetensors does not match", capsys.readouterr().err
    )
    assert inspect([str(own)]) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(200)])
def test_another_file_is_none(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=r"is not a file of models; expected a file made by trainer pack"):
        PackFile(tmp_path / "x")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["M", "out=f.cspine", "stages=bbx"], "no stage bbx; did you mean bbox?"),
        (["M", "out=f.cspine", "folds=7"], "no bbox run is chosen"),
        (["M"], "no out given; expected out=OUT"),
        (["nowhere", "out=f.cspine"], "models=nowhere: no such folder"),
        (["M", "out=."], ".: is a folder; expected a file"),
    ],
)
def test_a_mistake_in_packing_is_one_line(words, line, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert pack([str(models) if word == "M" else word for word in words]) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_of_another_version_says_so(packed, tmp_path):
    from trainer.trained.pack_file import write_entries

    manifest = zipfile.ZipFile(packed).read(MANIFEST).replace(b'"version":1}', b'"version":9}')
    write_entries(tmp_path / "new.cspine", iter([(MANIFEST, manifest), (CARD, b"")]))
    with pytest.raises(UsageError, match="version 9; expected version 1"):
        PackFile(tmp_path / "new.cspine")


@pytest.mark.check
def test_runs_and_pack_answer_the_same_from_dicom_zip_and_cache(models, packed, tmp_path):
    source = tmp_path / "source"
    write_phantom(
        tmp_path / "all", studies=2, slices=30, segmented=0, syntax="explicit", seed=11, workers=1, progress=False
    )
    (tmp_path / "all/train_images").rename(source)
    archive = shutil.make_archive(str(tmp_path / "scan"), "zip", source)
    found = []
    for number, (place, own) in enumerate([(source, models), (source, packed), (archive, packed), (archive, models)]):
        out = tmp_path / f"out{number}"
        assert (
            predict(
                [
                    f"source={place}",
                    f"models={own}",
                    f"out={out}",
                    "keep=true" if number == 1 else "keep=false",
                    "report=false",
                ]
            )
            == 0
        )
        found.append(read_table(out / "study_predictions.parquet"))
        assert not list(out.glob(".unpacked*"))
    assert (
        predict([f"source={tmp_path / 'out1/cache'}", f"models={packed}", f"out={tmp_path / 'last'}", "report=false"])
        == 0
    )
    found.append(read_table(tmp_path / "last/study_predictions.parquet"))
    for other in found[1:]:
        assert other["id"].equals(found[0]["id"])
        assert np.abs(other[list(TARGETS)] - found[0][list(TARGETS)]).to_numpy().max() < 1e-6
    one = sorted(source.iterdir())[0]
    answer = Predictor(packed)(one)
    expected = found[0].set_index("id").loc[one.name]
    assert answer.id == one.name and all(abs(answer.outputs[name] - expected[name]) < 1e-6 for name in TARGETS)
    with pytest.raises(UsageError, match="holds 2 studies that can be read; expected one"):
        Predictor(packed)(source)


@pytest.mark.check
def test_two_processes_answer_as_one(models, packed, tiny_cache, tmp_path):
    for number in (1, 2):
        words = [f"source={tiny_cache}", f"models={packed}", f"out={tmp_path / str(number)}", f"processes={number}"]
        assert predict(words) == 0
    first, second = (pd.read_csv(tmp_path / name / "predictions.csv") for name in "12")
    assert np.allclose(first[list(TARGETS)], second[list(TARGETS)], atol=1.1e-4)


@pytest.mark.check
def test_an_error_in_one_of_two_processes_is_one_line(packed, tiny_cache, tmp_path, capfd):
    (tmp_path / "cards").write_bytes(b"")
    assert predict([f"source={tiny_cache}", f"models={packed}", f"out={tmp_path}", "processes=2"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and "cards" in told and told.count("\n") == 1


def test_held_out_studies_are_answered_by_the_models_of_their_fold_only(chain, tiny_cache, tmp_path, capsys):
    runs, file = chain[0], tmp_path / "models.cspine"
    assert pack([str(runs), f"out={file}"]) == 0
    expected = read_table(runs / "tables/study_predictions.parquet").set_index("id")
    for number, own in enumerate((runs, file)):
        out = tmp_path / str(number)
        words = [f"source={tiny_cache}", f"models={own}", f"out={out}", "held_out=true", "report=false"]
        assert predict(words) == 0, capsys.readouterr().err
        found = read_table(out / "study_predictions.parquet").set_index("id")
        assert found.index.equals(expected.index)
        assert np.abs(found[list(TARGETS)] - expected[list(TARGETS)]).to_numpy().max() < 1e-6
    cache = shutil.copytree(tiny_cache, tmp_path / "other_folds")
    labels = Cache(cache).labels.rename(columns={"id": "StudyInstanceUID"})
    labels.assign(fold=1 - labels["fold"]).to_csv(tmp_path / "other.csv", index=False)
    replace_labels(cache, tmp_path / "other.csv", folds=tmp_path / "other.csv")
    assert predict([f"source={cache}", f"models={file}", f"out={tmp_path / 'no'}", "held_out=true"]) == 2
    assert "has seen the label of" in capsys.readouterr().err


def test_whatever_decides_an_answer_is_in_the_digest_of_the_models(models):
    own = models_of_runs(models)
    others = [
        replace(own, levels_found=LevelsFound(9, 9)),
        replace(own, thresholds=TableSettings(box_margin=3)),
        replace(own, by_stage={**own.by_stage, "study_fracture": own.by_stage["study_fracture"][:1]}),
    ]
    assert len({own.digest, *(each.digest for each in others)}) == 4
