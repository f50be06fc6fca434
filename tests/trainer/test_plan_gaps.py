"""What a plan's own runs cannot feed is told before anything runs, with what to add to the plan."""

import shutil
from pathlib import Path

import pytest

from cache_schema import Cache, CacheWriter
from trainer.plan.__main__ import main

BOXES = "which no bbox run of the plan holds out; give the plan's bbox runs folds: [0, 1]"
PSEUDO = "which no vertebrae run of the plan holds out; give the plan's vertebrae runs folds: [0, 1]"
BOTH = "{stage: bbox, folds: [0, 1]}"


def told(runs: list[str], cache: Path, folder: Path, capsys, *words: str) -> str:
    """The one line of a plan that never begins, whichever way it is asked for."""
    (folder / "plan.yaml").write_text("runs:\n" + "".join(f"  - {run}\n" for run in runs))
    lines = set()
    for more in (["dry_run=true"], [], ["format=sh"], ["format=json"]):
        assert main([str(folder / "plan.yaml"), f"cache={cache}", f"out={folder / 'runs'}", *words, *more]) == 2
        lines.add(capsys.readouterr().err)
    (line,) = lines
    assert line.startswith("error: ") and line.count("\n") == 1 and not (folder / "runs").exists()
    return line


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        (
            [BOTH, "{stage: vertebrae, folds: [0]}", "{stage: slice_fracture, folds: [0]}"],
            f"slice_fracture-04F/fold0-seed1: needs pseudo_labels of the studies of fold 1, {PSEUDO}",
        ),
        (
            [BOTH, "{stage: vertebrae, folds: [1]}", "{stage: slice_fracture, folds: [all], seeds: [2]}"],
            f"slice_fracture-04F/foldall-seed2: needs pseudo_labels of the studies of fold 0, {PSEUDO}",
        ),
        (
            ["{stage: bbox, folds: [0, all]}", "{stage: vertebrae, variant: 04A, folds: [0, 1]}"],
            f"vertebrae-04A/fold0-seed1: needs study_boxes of the studies of fold 1, {BOXES}",
        ),
        (
            ["{stage: bbox, folds: [all]}", "{stage: vertebrae, variant: 04A, folds: [1]}"],
            "needs study_boxes, which the plan does not make; add {stage: bbox, folds: [...]}",
        ),
        (
            [BOTH, "{stage: vertebrae, folds: [all]}", "{stage: slice_fracture}"],
            "needs pseudo_labels, which the plan does not make; add {stage: vertebrae, folds: [...]}",
        ),
        (
            [
                BOTH,
                "{stage: vertebrae, folds: [0, 1]}",
                "{stage: slice_fracture, folds: [0]}",
                "{stage: study_fracture, folds: [0, 1]}",
            ],
            "give the plan's slice_fracture runs of variant 04F fold 1 and seed 1, too",
        ),
        (
            [
                BOTH,
                "{stage: vertebrae, folds: [0, 1]}",
                "{stage: slice_fracture, folds: [0]}",
                "{stage: study_fracture, folds: [0], seeds: [3]}",
            ],
            "give the plan's slice_fracture runs of variant 04F fold 0 and seed 3, too",
        ),
        ([BOTH, "{stage: vertebrae, folds: [0, 1, 2]}"], "vertebrae-02G/fold2-seed1: "),
    ],
)
def test_runs_that_no_other_run_feeds_are_told_with_what_to_add(runs, line, tiny_cache, tmp_path, capsys):
    assert line in told(runs, tiny_cache, tmp_path, capsys)


@pytest.mark.parametrize(
    "runs",
    [
        [BOTH, "{stage: vertebrae, variant: 04A, folds: [0]}", "{stage: vertebrae, folds: [1]}"],
        [
            BOTH,
            "{stage: vertebrae, folds: [1]}",
            "{stage: slice_fracture, folds: [0]}",
            "{stage: study_fracture, folds: [0]}",
        ],
        ["{stage: bbox, folds: [0]}", "{stage: vertebrae, folds: [0, all]}"],
    ],
)
def test_what_is_fed_by_the_folds_that_are_there_is_listed(runs, tiny_cache, tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text("runs:\n" + "".join(f"  - {run}\n" for run in runs))
    assert main([str(tmp_path / "plan.yaml"), f"cache={tiny_cache}", f"out={tmp_path}", "dry_run=true"]) == 0
    assert capsys.readouterr().err == ""


def test_studies_without_a_fold_or_a_segmentation_train_nothing_and_that_is_told(tiny_cache, tmp_path, capsys):
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    labels = Cache(cache).labels
    segmented = Cache(cache).index.set_index("id")["segmentation_digest"].notna()
    CacheWriter(cache).finish(labels=labels.assign(fold=labels["id"].map(segmented).astype(int)))
    line = told(["{stage: bbox, folds: [0, 1]}"], cache, tmp_path, capsys)
    assert "bbox-01B/fold1-seed1: " in line and "no study with a segmentation outside fold 1" in line
    assert "--segmentations DIR" in line and "--folds N" in line
    CacheWriter(cache).finish(labels=labels.assign(fold=None))
    line = told(["{stage: bbox, folds: [all]}", "{stage: vertebrae, folds: [all]}"], cache, tmp_path, capsys)
    assert "no study with a segmentation to train bbox on" in line
    CacheWriter(cache).finish(labels=labels.assign(fold=labels["fold"].where(labels.index > 0)))
    assert Cache(cache).labels["fold"].isna().sum() == 1
    (tmp_path / "plan.yaml").write_text(f"runs:\n  - {BOTH}\n  - {{stage: vertebrae, variant: 04A, folds: [0, 1]}}\n")
    assert main([str(tmp_path / "plan.yaml"), f"cache={cache}", f"out={tmp_path / 'runs'}", "dry_run=true"]) == 0
