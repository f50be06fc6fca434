"""The competition's folder as a source: submission.csv has exactly the rows of test.csv, whatever lies beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache_schema import Cache
from preprocess.phantom.generate import write_phantom
from trainer.pack import main as pack
from trainer.predict import main as predict

ROOT = Path(__file__).resolve().parents[2]
MISSING = "1.2.826.0.1.3680043.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train_images, test_images with three studies, one of them of files that end too soon, and test.csv with a fourth."""
    folder = tmp_path_factory.mktemp("competition") / "input"
    write_phantom(folder, studies=3, slices=30, segmented=0, syntax="explicit", seed=11, workers=1, progress=False)
    (folder / "train_images").rename(folder / "test_images")
    studies = sorted((folder / "test_images").iterdir())
    for file in studies[-1].iterdir():
        file.write_bytes(file.read_bytes()[:-1000])
    write_phantom(
        folder / "more", studies=1, slices=12, segmented=0, syntax="explicit", seed=2, workers=1, progress=False
    )
    (folder / "more/train_images").rename(folder / "train_images")
    shutil.rmtree(folder / "more")
    ids = [studies[1].name, MISSING, studies[0].name, studies[2].name]
    rows = [(f"{id}_{target}", id, target) for id in ids for target in ("C3", "patient_overall", "C1")]
    table = pd.DataFrame([*rows[1:], rows[0]], columns=["row_id", "StudyInstanceUID", "prediction_type"])
    table.to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def ids(folder):
    return [path.name for path in sorted((folder / "test_images").iterdir())]


def submitted(out):
    return pd.read_csv(out / "submission.csv").set_index("row_id")["fractured"]


def test_the_submission_has_the_rows_of_test_csv_in_their_order(models, folder, ids, tmp_path, capfd):
    words = [f"models={models}", f"out={tmp_path / 'out'}", "report=false"]
    assert predict([f"source={folder}", *words]) == 3
    said, told = capfd.readouterr()
    assert "2 studies, 1 bbox models" in said, "train_images are not read"
    asked = pd.read_csv(folder / "test.csv")
    assert list(pd.read_csv(tmp_path / "out/submission.csv")) == ["row_id", "fractured"]
    values = submitted(tmp_path / "out")
    assert values.index.tolist() == asked["row_id"].tolist() and len(values) == 12
    table = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"id": str}).set_index("id")
    assert table.index.tolist() == ids[:2]
    for id in ids[:2]:
        for target in ("C1", "C3", "patient_overall"):
            outputs = pd.read_parquet(tmp_path / "out/study_predictions.parquet").set_index("id")
            assert values[f"{id}_{target}"] == outputs.loc[id, target]
    for id in (ids[2], MISSING):
        assert np.isclose(values[f"{id}_C1"], values[[f"{id}_C1" for id in ids[:2]]].mean(), atol=1e-12)
    assert f"{ids[2]}: refused: " in told and f"{MISSING}: no study of this id in {folder / 'test_images'}" in told
    assert "2 of 4 studies of test.csv get the mean of the 2 answered studies, first" in told
    assert predict([f"source={folder / 'test_images'}", *words]) == 3, "test.csv in its parent"
    assert "2 studies are answered already" in capfd.readouterr().out
    assert submitted(tmp_path / "out").equals(values)


def test_a_study_without_an_answer_gets_the_prior_of_the_models(chain, tiny_cache, folder, ids, tmp_path, capfd):
    runs, packed, labels = chain[0], tmp_path / "models.cspine", Cache(tiny_cache).labels
    assert pack([str(runs), f"out={packed}"]) == 0
    for number, own in enumerate((runs, packed)):
        out = tmp_path / str(number)
        assert predict([f"source={folder}", f"models={own}", f"out={out}", "report=false"]) == 3
        told = capfd.readouterr().err
        assert "2 of 4 studies of test.csv get the prevalence that the models record, first" in told
        for id in (ids[2], MISSING):
            for target in ("C1", "C3", "patient_overall"):
                assert np.isclose(submitted(out)[f"{id}_{target}"], labels[target].mean())
    assert np.abs(submitted(tmp_path / "0") - submitted(tmp_path / "1")).max() < 1e-6


def test_studies_that_test_csv_does_not_list_are_left_out_and_said(models, folder, ids, tmp_path, capfd):
    source = shutil.copytree(folder, tmp_path / "source")
    pd.DataFrame([("a row", ids[0], "C7")], columns=["row_id", "StudyInstanceUID", "prediction_type"]).to_csv(
        source / "test.csv", index=False
    )
    assert predict([f"source={source}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]) == 0
    said, told = capfd.readouterr()
    assert f"test.csv does not list 1 of the studies in {source / 'test_images'}: left out" in said
    assert "refused" not in told and submitted(tmp_path / "out").index.tolist() == ["a row"]
    (source / "test.csv").unlink()
    assert predict([f"source={source}", f"models={models}", f"out={tmp_path / 'out'}", "report=false"]) == 0
    assert len(submitted(tmp_path / "out")) == 8, "without test.csv train_images is what is read"


def test_where_no_study_can_be_read_every_row_is_there_all_the_same(models, folder, ids, tmp_path, capfd):
    source = tmp_path / "source"
    shutil.copytree(folder / "test_images" / ids[2], source / "test_images" / ids[2])
    shutil.copy(folder / "test.csv", source)
    assert predict([f"source={source}", f"models={models}", f"out={tmp_path / 'out'}", "report=true"]) == 3
    assert submitted(tmp_path / "out").eq(0.5).all() and len(submitted(tmp_path / "out")) == 12
    told = capfd.readouterr().err
    assert "4 of 4 studies of test.csv get 0.5, for want of any answer" in told
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "cannot be read as a CSV"),
        ("row_id,StudyInstanceUID\na,b\n", "has no column prediction_type"),
        ("row_id,StudyInstanceUID,prediction_type\n", "has no rows"),
        ("row_id,StudyInstanceUID,prediction_type\nx,1.2,C1\ny,1.2,C8\n", "line 3 has another prediction_type than"),
        ("row_id,StudyInstanceUID,prediction_type\nx,1.2,C1\nx,1.2,C2\n", "line 3 has a row_id that stands in"),
        ("row_id,StudyInstanceUID,prediction_type\nx,,C1\n", "line 2 has an empty field"),
        ('row_id,StudyInstanceUID,prediction_type\n"x,1.2,C1\n', "cannot be read as a CSV"),
        (b"row_id,StudyInstanceUID,prediction_type\n\xff,1.2,C1\n", "is not UTF-8"),
    ],
)
def test_another_test_csv_is_one_line_before_anything_is_decoded(text, line, models, tmp_path, capsys):
    source = tmp_path / "source"
    (source / "test_images").mkdir(parents=True)
    (source / "test.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert predict([f"source={source}", f"models={models}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert line in said and said.startswith("error: ") and said.count("\n") == 1 and not (tmp_path / "out").exists()


SEALED = """
set -e
mount --make-rprivate /
mount --bind "$OUT" "$OUT"
mount -o remount,ro,bind /
for place in $(awk '$2 != "/" && $2 !~ "^/(proc|sys)(/|$)" {print $2}' /proc/self/mounts); do
    test "$place" = "$OUT" || mount -o remount,ro,bind "$place" 2>/dev/null || true
done
for place in "$HOME" /tmp /dev/shm /var/tmp "$SOURCE" "$PWD"; do
    if touch "$place/x" 2>/dev/null; then exit 78; fi
done
touch "$OUT/x" && rm "$OUT/x"
exec "$@"
"""


def sealed(command, environment):
    """Runs it where nothing but $OUT can be written."""
    unshare = ["unshare", "--mount", "sh", "-c", SEALED, "sh"]
    tried = subprocess.run([*unshare, "true"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert tried.returncode != 78, "a place can still be written to"
    if tried.returncode:
        pytest.skip(f"mount namespaces are not permitted here: {tried.stderr.strip()}")
    return subprocess.run([*unshare, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.check
def test_nothing_is_written_outside_out_with_everything_else_read_only(models, folder, ids, tmp_path):
    source, out, home = tmp_path / "source", tmp_path / "out", tmp_path / "home"
    shutil.copytree(folder, source)
    for place in (out, home):
        place.mkdir()
    words = [f"source={source}", f"models={models}", f"out={out}", "slices=true", "timing=true", "limit=10h"]
    command = [sys.executable, "-m", "trainer.predict", *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "MPLCONFIGDIR")}
    environment |= {"HOME": str(home), "OUT": str(out), "SOURCE": str(source)}
    done = sealed(command, environment)
    assert done.returncode == 3, done.stderr
    assert "Matplotlib" not in done.stderr and "Traceback" not in done.stderr
    assert len(submitted(out)) == 12 and (out / "report.html").stat().st_size > 10_000
    assert not list(home.iterdir()) and not list(out.glob(".*"))


@pytest.mark.check
def test_a_zip_is_unpacked_inside_out_with_everything_else_read_only(models, folder, ids, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    archive = shutil.make_archive(str(tmp_path / "scan"), "zip", folder / "test_images" / ids[0])
    command = [sys.executable, "-m", "trainer.predict", f"source={archive}", f"models={models}", f"out={out}"]
    environment = os.environ | {"HOME": "/nowhere", "OUT": str(out), "SOURCE": "/nowhere"}
    done = sealed(command, environment)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(out / "predictions.csv")) == 1 and not list(out.glob(".*"))
