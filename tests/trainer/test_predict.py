"""`python -m trainer.predict`: from a folder of DICOM files, or a cache, to probabilities, by the runs under RUNS."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from changes import other_segmentation, reseal
from safetensors import safe_open
from safetensors.numpy import save_file

from cache_schema import TARGETS, Cache, CacheWriter
from cache_schema.tables import read_table, write_table
from preprocess.cli import run as preprocess
from preprocess.crop import crop_cache
from preprocess.phantom.generate import write_phantom
from trainer import train
from trainer.predict import main
from trainer.predictor.job import Job
from trainer.runs.weights import weights_metadata
from trainer.tables.settings import TableSettings


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three new studies as DICOM, one of them of files that end too soon."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantom(
        folder / "all", studies=3, slices=30, segmented=0, syntax="explicit", seed=11, workers=1, progress=False
    )
    source = (folder / "all/train_images").rename(folder / "source")  # no labels beside it
    for file in sorted(source.iterdir())[-1].iterdir():
        file.write_bytes(file.read_bytes()[:-1000])
    return source


def test_new_scans_get_the_mean_of_all_runs(models, scans, tmp_path, capfd):
    words = [f"source={scans}", f"models={models}", f"out={tmp_path}", "keep=true"]
    assert main([*words, "slices=true"]) == 3, "one study was refused"
    said, told = capfd.readouterr()
    assert "2 studies, 1 bbox models, 1 slice_fracture models, 2 study_fracture models" in said
    assert told.count(": refused: ") == 1
    assert (
        "seen in training" not in said and "has no tables/study_boxes.parquet" in said and "using the defaults" in said
    )
    table = pd.read_csv(tmp_path / "predictions.csv", dtype={"id": str}).set_index("id")
    assert sorted(table.index) == Cache(tmp_path / "cache").ids and len(table) == 2
    each = [
        read_table(path).set_index("id") for path in tmp_path.glob("runs/study_fracture-*/*/predictions-all.parquet")
    ]
    assert len(each) == 2 and not np.allclose(each[0][list(TARGETS)], each[1][list(TARGETS)], atol=1e-4)
    expected = (each[0] + each[1])[list(TARGETS)] / 2
    assert np.allclose(table[list(TARGETS)], expected.loc[table.index], atol=6e-5)
    where = pd.read_csv(tmp_path / "slices.csv", dtype={"id": str})
    (path,) = tmp_path.glob("runs/slice_fracture-*/*/predictions-all.parquet")
    slices, (id, level) = read_table(path), where.loc[5, ["id", "level"]]
    own = slices[slices["id"] == id].set_index("z_index")[f"{level}_frac"]
    assert len(where) == 14 and (where.loc[5, "z_index"], where.loc[5, "fracture"]) == (
        own.idxmax(),
        round(own.max(), 4),
    )
    numbers = Cache(tmp_path / "cache").study(id).slice_number
    assert where.loc[5, "slice_number"] == numbers[own.idxmax()]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*")}
    assert main(words) == 3 and "2 studies are answered already" in capfd.readouterr().out
    assert not (tmp_path / "slices.csv").exists(), "it was not asked for"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*")} == before
    assert pd.read_csv(tmp_path / "predictions.csv", dtype={"id": str}).set_index("id").equals(table)


def test_another_source_leaves_nothing_of_the_one_before(models, scans, tmp_path, capfd):
    source = shutil.copytree(scans, tmp_path / "source")
    (source / "train.csv").write_text("of,something\nelse,1\n")
    first, second, _ = sorted(path for path in source.iterdir() if path.is_dir())
    words = [f"source={source}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]
    assert main(words) == 3
    shutil.rmtree(first)
    for _ in range(2):  # the second time nothing is left to build
        assert main(words) == 3
        table = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"id": str})
        boxes = read_table(tmp_path / "out/study_boxes.parquet")
        assert table["id"].tolist() == boxes["id"].tolist() == [second.name]
        assert [path.stem for path in tmp_path.glob("out/answers/*")] == [second.name]
        assert not (tmp_path / "out/cache").exists() and not (tmp_path / "out/runs").exists()
    competition = pd.read_csv(tmp_path / "out/submission.csv")
    assert competition["row_id"].tolist() == [f"{second.name}_{target}" for target in TARGETS]
    assert np.allclose(competition["fractured"], table[list(TARGETS)].to_numpy()[0], atol=6e-5)
    shutil.rmtree(second)
    capfd.readouterr()
    assert main(words) == 2 and "no study can be used" in capfd.readouterr().err
    assert not (tmp_path / "out/predictions.csv").exists() and not (tmp_path / "out/submission.csv").exists()


def test_boxes_are_made_as_the_plan_made_them(models, tiny_cache, tmp_path, capfd):
    own = shutil.copytree(models, tmp_path / "models")
    assert main([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 0
    before = read_table(tmp_path / "out/study_boxes.parquet")
    settings = TableSettings(box_margin=4)
    inputs = {"settings": settings.model_dump_json()}
    write_table(own / "tables/study_boxes.parquet", before, "test", inputs)
    capfd.readouterr()
    assert main([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 0
    after = read_table(tmp_path / "out/study_boxes.parquet")
    assert "defaults are taken" not in capfd.readouterr().out
    assert (after["x0"] == (before["x0"] - 4).clip(lower=0)).all() and (after["x0"] != before["x0"]).any()


def test_boxes_of_new_scans_come_from_the_runs_of_all_data_where_there_are_any(
    models, tiny_cache, tiny_settings, tmp_path, capfd
):
    own = shutil.copytree(models, tmp_path / "models")
    train(stage="bbox", cache=tiny_cache, out=own, config=tiny_settings, fold="all", seed=5)
    assert main([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 0
    assert "6 studies, 1 bbox models, 1 slice_fracture models, 2 study_fracture models" in capfd.readouterr().out
    answer = json.loads(next(tmp_path.glob("out/answers/*")).read_bytes())["answer"]
    assert answer["models"]["bbox"] == ["bbox-01B/foldall-seed5"]


def test_runs_made_from_what_is_there_no_longer_are_left_out(models, tiny_cache, tmp_path, capfd):
    own = shutil.copytree(models, tmp_path / "models")
    (backbone,) = own.glob("slice_fracture-*/fold0-seed1")
    (first, second) = sorted(own.glob("study_fracture-*/fold0-seed*"))
    words = [f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]
    digest = reseal(backbone / "model.safetensors", seed="7")
    assert main(words) == 2
    said = capfd.readouterr()
    line = (
        f"all 2 runs like study_fracture-04F/fold0-seed1 are stale: made from other backbone than {own} holds now; make"
    )
    assert line in said.err
    inputs = json.loads(weights_metadata(first / "model.safetensors")["inputs"])
    reseal(first / "model.safetensors", inputs=json.dumps(inputs | {"backbone": digest}))
    assert main(words) == 0
    said = capfd.readouterr().out
    assert said.count("stale, left out") == 1 and second.name in said and "1 study_fracture models" in said


def test_settings_of_another_run_beside_the_weights_are_refused(models, tiny_cache, tmp_path, capfd):
    own = shutil.copytree(models, tmp_path / "models")
    first, second = sorted(own.glob("study_fracture-*/fold0-seed*/config.yaml"))
    shutil.copy(first, second)
    assert main([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 1
    assert (
        f"error: {second.with_name('model.safetensors')}: does not belong to the settings in the same folder"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "out/predictions.csv").exists()


def test_a_cache_in_the_middle_of_a_change_is_not_predicted_on(models, tiny_cache, tmp_path, capfd):
    cache = Cache(shutil.copytree(tiny_cache, tmp_path / "cache"))
    study = cache.study(cache.index.dropna(subset="segmentation_digest")["id"].iloc[0])
    CacheWriter(cache.path).publish(other_segmentation(study))
    words = [f"source={cache.path}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]
    assert main(words) == 1
    assert f"study {study.id} was changed after the index was written" in capfd.readouterr().err
    assert not list(tmp_path.glob("out/*.csv")) and not list(tmp_path.glob("out/runs/*/*/*.parquet"))
    CacheWriter(cache.path).finish()
    assert main(words) == 0 and (tmp_path / "out/predictions.csv").is_file()


def test_a_model_whose_numbers_are_not_finite_is_named(models, tiny_cache, tmp_path, capfd):
    own = shutil.copytree(models, tmp_path / "models")

    def spoil(weights, metadata):
        weights.update({name: weights[name] * np.nan for name in weights})
        del metadata["digest"]  # as it would be of weights that were saved so

    changed(own, spoil)
    assert main([f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 2
    line = capfd.readouterr().err
    assert "predicts numbers that are not finite, first for study" in line and "fold0-seed2" in line
    assert not (tmp_path / "out/predictions.csv").exists()


def test_models_that_do_not_fit_are_said_before_anything_is_decoded(models, scans, tmp_path, capfd):
    other = shutil.copytree(models, tmp_path / "other")
    changed(other, lambda weights, metadata: metadata.update(pixel_hash="0" * 64))
    twice = shutil.copytree(models, tmp_path / "twice")
    shutil.copytree(twice / "study_fracture-04F/fold0-seed1", twice / "study_fracture-04F/fold0-seed3")
    for own, line in ((other, "was trained with pixel_hash=000"), (twice, "has the same settings as ")):
        assert main([f"source={scans}", f"models={own}", f"out={tmp_path / 'out'}", "report=false"]) == 2
        assert line in capfd.readouterr().err and not (tmp_path / "out").exists()


def changed(models, change):
    """One study_fracture run with other weights or metadata."""
    path = models / "study_fracture-04F/fold0-seed2/model.safetensors"
    with safe_open(path, "np") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.offset_keys()}, dict(file.metadata())
    change(weights, metadata)
    save_file(weights, path, metadata)


@pytest.mark.check
def test_it_is_what_the_runs_predict_by_themselves_and_says_what_they_have_seen(
    models, tiny_cache, tiny_settings, tmp_path, capfd
):
    assert main([f"source={tiny_cache}", f"models={models}", f"out={tmp_path}", "report=false"]) == 0
    assert "3 of 6 studies were seen in training by these models" in capfd.readouterr().out
    found = pd.read_csv(tmp_path / "predictions.csv", dtype={"id": str})
    runs = sorted(models.glob("study_fracture-*/*"))
    alone = []
    for seed, weights in enumerate(runs, 1):
        given = dict(cache=tiny_cache, out=tmp_path / "alone", boxes=tmp_path / "study_boxes.parquet", weights=weights)
        own = train(stage="study_fracture", mode="predict", split="all", seed=seed, config=tiny_settings, **given)
        alone.append(read_table(own / "predictions-all.parquet")[list(TARGETS)])
    assert np.allclose(found[list(TARGETS)], sum(alone) / 2, atol=6e-5)
    plain = tmp_path / "plain"
    assert main([f"source={tiny_cache}", f"models={models}", f"out={plain}", "data.loader=plain", "report=false"]) == 0
    assert np.allclose(found[list(TARGETS)], pd.read_csv(plain / "predictions.csv")[list(TARGETS)], atol=6e-5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["source=S", "out=O"], "no models given; expected models=MODELS"),
        (["source=S", "models=M", "out=O", "modle.name=x"], "no setting modle; did you mean model?"),
        (["source=S", "models=M", "out=O", "data.wokers=1"], "no setting data.wokers; did you mean data.workers?"),
        (["source=S", "models=nowhere", "out=O"], "models=nowhere: no such path; expected the out= of a plan"),
        (
            ["source=S", "models=.", "out=O"],
            "models=.: no finished bbox run; expected bbox-*/fold*-seed*/model.safetensors",
        ),
        (
            ["source=nowhere", "models=M", "out=O"],
            "source=nowhere: no such path; expected DICOM files, a zip of them, or a cache",
        ),
        (["source=" + "x" * 300, "models=M", "out=O"], "x: file name too long"),
        (["source=S", "source.x=a", "models=M", "out=O"], "source is a value, not a section"),
        (["source.x=a", "models=M", "out=O"], "no source given; expected source=SOURCE"),
        (
            ["source=D", "models=M", "out=O", "data.loader=foo"],
            "data.loader='foo' does not fit; expected 'dali' or 'plain'",
        ),
        (
            ["source=D", "models=M", "out=O", "data.resident=gpu"],
            "data.resident=gpu keeps crops, and bbox 01B has none",
        ),
        (["source=D", "models=M", "out=O", "data.size=96"], "data.size is fixed by the training"),
        (["source=S", "models=M", "out=O", "train.eval_batch=none"], "train.eval_batch='none' does not fit"),
    ],
)
def test_a_mistake_is_one_line(words, line, models, tiny_cache, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"source=S": f"source={tiny_cache}", "source=D": f"source={scans}", "models=M": f"models={models}"}
    assert main([places.get(word, word) for word in words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and line in said[0]
    assert not (tmp_path / "O").exists(), "before anything is decoded"


@pytest.mark.parametrize("own", ["answers", "cards", "dicom"])
def test_a_source_among_the_results_is_refused_and_stays(own, tmp_path, capsys):
    scan = tmp_path / own / "by patient/1.dcm"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"a scan")
    assert main([f"source={tmp_path / own}", f"models={tmp_path}", f"out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"lies in {tmp_path / own}, which holds results" in error and error.count("\n") == 1
    assert scan.read_bytes() == b"a scan"


def test_a_cache_runs_or_tables_of_others_are_not_replaced(tiny_cache, tmp_path, capsys):
    runs, cache, scans = tmp_path / "runs", tmp_path / "cache", tmp_path / "scans"
    shutil.copytree(tiny_cache, cache)
    for folder in (scans, runs / "tables", tmp_path / "answers"):
        folder.mkdir(parents=True)
    (runs / "tables/study_boxes.parquet").write_bytes(b"of the plan")
    before = sorted(tmp_path.rglob("*"))
    for out, others, line in (
        (tmp_path, tmp_path / "other", "was not made by an earlier prediction"),
        (tmp_path, runs, f"lies in {runs}, which holds results"),
        (runs / "tables", runs, "is where the plan keeps its tables"),
    ):
        assert main([f"source={scans}", f"models={others}", f"out={out}", "keep=true"]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_was_made_is_removed_from_the_results(tmp_path):
    for name in ("old/SR.dcm", "old/SC/0001.dcm", "mixed/SR.dcm", "mixed/letter.txt", "kept/SR.dcm", "note.txt"):
        path = tmp_path / "dicom" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    rows = tmp_path / "runs/bbox-01B/fold0-seed1/studies"
    rows.mkdir(parents=True)
    for name in ("old", "kept"):
        (rows / f"{name}.parquet").write_bytes(b"")
    Job(None, tmp_path, {}).remove_others({"kept"})
    assert [path.name for path in rows.iterdir()] == ["kept.parquet"]
    left = [path.relative_to(tmp_path / "dicom").as_posix() for path in (tmp_path / "dicom").rglob("*")]
    assert sorted(left) == ["kept", "kept/SR.dcm", "mixed", "mixed/letter.txt", "note.txt"]


def test_a_damaged_study_of_a_cache_is_named_and_the_others_are_answered(models, tiny_cache, tmp_path, capfd):
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    first, *others = Cache(cache).ids
    chunk = cache / first / "pixels/c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[50] ^= 1
    chunk.write_bytes(content)
    assert main([f"source={cache}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]) == 3
    assert f"{first}: refused: " in capfd.readouterr().err
    assert pd.read_csv(tmp_path / "out/predictions.csv", dtype={"id": str})["id"].tolist() == others


def test_a_cropped_cache_is_refused_before_anything_is_answered(models, tiny_cache, true_boxes, tmp_path, capfd):
    boxed = shutil.copytree(tiny_cache, tmp_path / "boxed")
    assert preprocess(["set-boxes", str(boxed), str(true_boxes)]) == 0
    crop_cache(boxed, tmp_path / "cropped")
    assert main([f"source={tmp_path / 'cropped'}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]) == 2
    assert "holds cropped studies; expected whole slices; give the cache" in capfd.readouterr().err


def test_held_out_studies_have_boxes_of_their_fold_beside_runs_of_all_data(chain, tiny_cache, tiny_settings, tmp_path):
    own = shutil.copytree(chain[0], tmp_path / "runs")
    train(stage="bbox", cache=tiny_cache, out=own, config=tiny_settings, fold="all", seed=5)
    words = [f"source={tiny_cache}", f"models={own}", f"out={tmp_path / 'out'}", "held_out=true", "keep=true"]
    assert main([*words, "report=false"]) == 0
    expected = read_table(own / "tables/study_predictions.parquet").set_index("id")
    found = read_table(tmp_path / "out/study_predictions.parquet").set_index("id")
    assert np.abs(found[list(TARGETS)] - expected[list(TARGETS)]).to_numpy().max() < 1e-6
    tables = [read_table(path) for path in tmp_path.glob("out/runs/bbox-*/fold*/predictions-all.parquet")]
    assert len(tables) == 2 and sorted({id for table in tables for id in table["id"]}) == Cache(tiny_cache).ids
