"""`python -m trainer.tables` takes only what is made from this cache and from what lies under RUNS now; the rest is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changes import other_pixels, other_segmentation, reseal
from planting import planted
from stale_runs import NAMES, flip, scored, stale, tables_of

from cache_schema import Cache, CacheWriter
from cache_schema.tables import read_table, table_meta, write_table
from trainer.leakage.groups import from_table, pair_frame
from trainer.look.__main__ import main as look
from trainer.plan.__main__ import main as plan
from trainer.tables.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tabled, tmp_path) -> Path:
    return shutil.copytree(tabled, tmp_path / "runs")


@pytest.fixture
def cache(tiny_cache, tmp_path) -> Path:
    return shutil.copytree(tiny_cache, tmp_path / "cache")


def test_runs_that_were_moved_give_the_same_tables_from_any_folder(
    chain, tabled, tiny_cache, tmp_path, monkeypatch, capfd
):
    for name in ("study_boxes", "vertebra_ratios", "pseudo_labels", "study_predictions"):
        assert read_table(tabled / f"tables/{name}.parquet").equals(read_table(chain[0] / f"tables/{name}.parquet"))
    shutil.copytree(tabled, tmp_path / "elsewhere/runs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(Path("runs/tables"))
    assert main(["runs", f"cache={tiny_cache}"]) == 0
    assert not stale(capfd.readouterr().out) and tables_of(Path("runs")) == tables_of(tabled)


def test_exposure_files_of_earlier_versions_give_the_same_tables_and_scores(tabled, runs, tiny_cache, capfd):
    for path in (*runs.glob("*/*/exposure.parquet"), *runs.glob("tables/*.exposure.parquet")):
        pairs, meta = pair_frame(from_table(read_table(path))), table_meta(path)
        write_table(path, pairs, meta["made_by"], meta["inputs"])
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    assert not stale(capfd.readouterr().out)
    before, after = tables_of(tabled), tables_of(runs)
    for name in ("scores.json", "segmentation_exposure.csv", "submission.csv"):
        assert after[name] == before[name]
    for name in ("study_boxes", "vertebra_ratios", "pseudo_labels", "study_predictions"):
        assert (
            table_meta(runs / f"tables/{name}.parquet")["digest"]
            == table_meta(tabled / f"tables/{name}.parquet")["digest"]
        )
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    again = tables_of(runs)
    assert {name for name in after if again[name] != after[name]} == set(), "all is up to date with these files"


def other(change, cache: Path) -> None:
    writer = CacheWriter(cache)
    for id in Cache(cache).index.dropna(subset="segmentation_digest")["id"]:
        writer.publish(change(Cache(cache).study(id)))
    writer.finish()


def draw_anew(cache: Path) -> None:
    labels = Cache(cache).labels
    CacheWriter(cache).finish(labels=labels.assign(fold=[0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cache: other(other_pixels, cache), "other pixels"),
        (draw_anew, "other folds or studies"),
    ],
    ids=["pixels", "folds"],
)
def test_a_cache_that_the_runs_are_not_of_changes_no_table(change, why, runs, cache, capfd):
    before = tables_of(runs)
    change(cache)
    assert main([str(runs), f"cache={cache}", "export=rsna22"]) == 1
    said = capfd.readouterr()
    assert tables_of(runs) == before and not (runs / "tables/rsna22").exists()
    assert set(stale(said.out)) == set(NAMES) and all(reason.startswith(why) for reason in stale(said.out).values())
    assert "held_out" not in said.out, "no score of before is shown"
    assert "error: " in said.err and "Traceback" not in said.err


@pytest.mark.check
def test_stale_runs_are_drawn_and_named(runs, cache, capfd):
    other(other_pixels, cache)
    assert look([f"tables={runs}", f"cache={cache}", "items=1"]) == 0
    said = capfd.readouterr()
    assert said.err.count("stale, drawn all the same: other pixels") == len(NAMES) and "boxes-01.png" in said.out
    table = read_table(runs / "tables/study_boxes.parquet")
    write_table(runs / "tables/study_boxes.parquet", table.assign(x1=4096), "by hand", {})
    assert look([f"tables={runs}", f"cache={cache}", "items=1"]) == 1
    assert f"lies outside its study in {cache}; give the cache that it is of" in capfd.readouterr().err


def test_another_segmentation_makes_what_was_trained_on_it_stale_and_all_that_follows(runs, cache, capfd):
    before = tables_of(runs)
    other(other_segmentation, cache)
    assert main([str(runs), f"cache={cache}"]) == 1
    found = stale(capfd.readouterr().out)
    assert set(found) == set(NAMES) and tables_of(runs) == before
    assert (
        "other segmentations" in found["bbox-01B/fold0-seed1"]
        and "other boxes" in found["study_fracture-04F/fold0-seed1"]
    )


def test_another_label_leaves_the_stages_without_labels_and_their_scores(runs, cache, capfd):
    before, labels = tables_of(runs), Cache(cache).labels
    CacheWriter(cache).finish(labels=labels.assign(C3=1 - labels["C3"]))
    assert main([str(runs), f"cache={cache}"]) == 1
    found, after = stale(capfd.readouterr().out), tables_of(runs)
    assert set(found) == set(NAMES[4:])
    assert all("other pseudo labels" in found[name] for name in NAMES[4:6])
    assert all("other labels" in found[name] and "another backbone" in found[name] for name in NAMES[6:])
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"pseudo_labels.parquet", "pseudo_labels.exposure.parquet", "scores.json"} - (
        {"pseudo_labels.exposure.parquet"} & {name for name in before if before[name] == after[name]}
    ) | ({"segmentation_exposure.csv"} & changed)
    assert scored(runs) == {"bbox", "vertebrae"}


def test_other_thresholds_make_what_has_read_the_boxes_stale(runs, tiny_cache, capfd):
    before = tables_of(runs)
    assert main([str(runs), f"cache={tiny_cache}", "tables.box_margin=5"]) == 1
    found, after = stale(capfd.readouterr().out), tables_of(runs)
    assert set(found) == set(NAMES[2:]) and all("other boxes" in why for why in found.values())
    assert after["study_boxes.parquet"] != before["study_boxes.parquet"] and scored(runs) == {"bbox"}
    kept = ("vertebra_ratios.parquet", "pseudo_labels.parquet", "study_predictions.parquet", "submission.csv")
    assert all(after[name] == before[name] for name in kept)
    assert main([str(runs), f"cache={tiny_cache}", "tables.box_margin=0"]) == 0 and tables_of(runs) == before


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bbox-01B/fold1-seed1", "predictions.parquet"),
        ("vertebrae-04A/fold0-seed1", "config.yaml"),
        ("study_fracture-04F/fold0-seed1", "predictions.parquet"),
    ],
)
def test_a_run_with_a_damaged_file_is_named_and_no_table_is_made_of_the_rest(name, file, runs, tiny_cache, capfd):
    before = tables_of(runs)
    flip(runs / name / file)
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    said = capfd.readouterr()
    assert file in stale(said.out)[name] and "Traceback" not in said.err
    assert f"no current run replaces {name}" in said.err
    assert tables_of(runs) == before


def test_a_read_error_names_the_run_and_keeps_its_tables_and_all_that_follow(runs, tiny_cache, capfd):
    """Its run may be up to date: if it were left out, all that was made from its tables would count as stale."""
    before, config = tables_of(runs), runs / "vertebrae-04A/fold0-seed1/config.yaml"
    (runs / "tables/study_boxes.parquet").unlink()
    with planted([config], 1):
        assert main([str(runs), f"cache={tiny_cache}"]) == 2
    said = capfd.readouterr()
    assert said.err == f"error: {config}: input/output error\n" and not stale(said.out)
    assert tables_of(runs) == before, "the stage before it has its table again"
    assert main([str(runs), f"cache={tiny_cache}"]) == 0 and tables_of(runs) == before


def test_runs_of_another_version_are_stale_whatever_else_is_gone(runs, tiny_cache, capfd):
    reseal(runs / NAMES[0] / "model.safetensors", version="1")
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    found = stale(capfd.readouterr().out)
    assert found[NAMES[0]] == "version 1 of its stage" and NAMES[1] not in found


def test_a_stale_run_beside_others_of_its_fold_is_left_out_and_the_tables_are_whole(runs, tiny_cache, capfd):
    before = tables_of(runs)
    for name in ("bbox-01B/fold0-seed", "study_fracture-04F/fold1-seed"):
        shutil.copytree(runs / f"{name}1", runs / f"{name}2")
        flip(runs / f"{name}2/predictions.parquet")
    shutil.copytree(runs / "bbox-01B/fold1-seed1", runs / "bbox-01B/fold1-seed3")
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    found = stale(capfd.readouterr().out)
    assert set(found) == {"bbox-01B/fold0-seed2", "study_fracture-04F/fold1-seed2", "bbox-01B/fold1-seed3"}
    assert found["bbox-01B/fold1-seed3"] == "it is bbox-01B/fold1-seed1 by its settings"
    assert tables_of(runs) == before


@pytest.mark.parametrize(
    "files",
    [
        ["study_boxes.parquet", "pseudo_labels.exposure.parquet", "submission.csv"],
        ["study_boxes.exposure.parquet", "vertebra_ratios.parquet", "scores.json"],
        ["pseudo_labels.parquet", "study_predictions.parquet", "segmentation_exposure.csv"],
    ],
)
def test_damaged_tables_are_made_again(files, runs, tiny_cache, capfd):
    before = tables_of(runs)
    for place, file in enumerate(files, 1):
        flip(runs / "tables" / file, 0.3 * place)
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    said = capfd.readouterr()
    assert tables_of(runs) == before and not stale(said.out)
    for file in files:
        named = [line for line in said.err.splitlines() if f"/{file}: " in line]
        assert not file.endswith("parquet") or (len(named) == 1 and "is made again" in named[0])


def test_a_plan_makes_damaged_tables_again_and_trains_nothing(runs, tiny_cache, tiny_settings, tmp_path, capfd):
    rows = ("bbox", "vertebrae, variant: 04A", "slice_fracture", "study_fracture")
    listed = "".join(f"  - {{stage: {row}, folds: [0, 1]}}\n" for row in rows)
    (tmp_path / "plan.yaml").write_text(f"config: {tiny_settings}\nruns:\n{listed}")
    before, words = tables_of(runs), [str(tmp_path / "plan.yaml"), f"cache={tiny_cache}", f"out={runs}"]
    for file in ("study_boxes.parquet", "pseudo_labels.exposure.parquet", "submission.csv", "scores.json"):
        flip(runs / "tables" / file)
    assert plan([*words, "dry_run=true"]) == 0
    assert "stale          study_boxes " in capfd.readouterr().out
    assert plan(words) == 0
    said = capfd.readouterr()
    assert said.out.count("] already done\n") == 8 and tables_of(runs) == before
    assert "[study_boxes] made: " in said.out and "[vertebra_ratios] already made: " in said.out
    assert "training mean box" in said.out


def test_runs_without_their_config_are_known_by_their_weights_and_the_other_way_round(runs, tiny_cache, capfd):
    before = tables_of(runs)
    for name in NAMES[:4]:
        (runs / name / "config.yaml").unlink()
    for name in NAMES[6:]:
        (runs / name / "model.safetensors").unlink()
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    assert not stale(capfd.readouterr().out) and tables_of(runs) == before


def test_what_a_run_was_made_from_may_be_gone(runs, tiny_cache, tmp_path, capfd):
    """Nothing there says otherwise: what the weights say that they were made from stands for it."""
    before = tables_of(runs)
    for name in NAMES[4:6]:
        shutil.rmtree(runs / name)
    shutil.move(runs / "bbox-01B", tmp_path / "bbox-01B")
    shutil.move(runs / "tables", tmp_path / "tables")
    assert main([str(runs), f"cache={tiny_cache}"]) == 0
    said = capfd.readouterr().out
    assert not stale(said) and scored(runs) == {"vertebrae", "study_fracture"}
    gone = "study_fracture-04F/fold0-seed1: its inputs no longer exist and are assumed unchanged: boxes, backbone"
    assert gone in said and said.count("its inputs no longer exist") == 4
    again = tables_of(runs)
    assert all(again[name] == before[name] for name in ("vertebra_ratios.parquet", "submission.csv"))


@pytest.mark.parametrize("spoil", [Path.unlink, flip])
def test_a_run_of_which_nobody_knows_what_it_has_seen_is_not_scored(spoil, runs, tiny_cache, capfd):
    before = tables_of(runs)
    spoil(runs / "vertebrae-04A/fold0-seed1/exposure.parquet")
    assert main([str(runs), f"cache={tiny_cache}", "export=rsna22"]) == 1
    said = capfd.readouterr()
    assert "error: " in said.err and "vertebrae 04A may not be scored: " in said.err
    assert scored(runs) == {"bbox", "slice_fracture", "study_fracture"} and (runs / "tables/rsna22").is_dir()
    kept = {name for name, data in tables_of(runs).items() if before[name] == data}
    assert {"vertebra_ratios.parquet", "vertebra_ratios.exposure.parquet", "pseudo_labels.parquet"} <= kept
    shutil.rmtree(runs / "tables")
    assert main([str(runs), f"cache={tiny_cache}"]) == 1
    assert not (runs / "tables/vertebra_ratios.parquet").exists() and scored(runs) == {"bbox"}


def test_predictions_that_state_their_studies_are_compared_without_their_run(runs, cache, capfd):
    for name in NAMES[:2]:
        for file in ("config.yaml", "model.safetensors", "exposure.parquet"):
            (runs / name / file).unlink()
    assert main([str(runs), f"cache={cache}"]) == 0
    said = capfd.readouterr().out
    assert said.count(": not checked: ") == 2 and scored(runs) == {row.split("-")[0] for row in NAMES}
    assert "bbox-01B: of unknown exposure" in said
    before = tables_of(runs)
    other(other_pixels, cache)
    assert main([str(runs), f"cache={cache}"]) == 1
    assert set(stale(capfd.readouterr().out)) == set(NAMES) and tables_of(runs) == before


def test_tables_are_made_without_torch(runs, tiny_cache):
    shutil.rmtree(runs / "tables")
    code = (
        "import sys; from trainer.tables.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(runs), f"cache={tiny_cache}", "export=rsna22"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
