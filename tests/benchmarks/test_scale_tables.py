"""`python -m benchmarks.scale_tables`: made-up runs are runs, and each step says what it took."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import made_up_runs
from cache_schema import TARGETS, Cache
from trainer.scores.truth import box_truth, ratio_truth

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("reference", [made_up_runs.REFERENCE, Path("none.csv")])
def test_studies_have_labels_folds_and_as_many_slices_as_asked(reference, monkeypatch, tmp_path):
    monkeypatch.setattr(made_up_runs, "REFERENCE", reference)
    labels, _ = made_up_runs.labels_of(30)
    made_up_runs.write_cache(tmp_path / "cache", labels, 1000)
    cache = Cache(tmp_path / "cache")
    assert cache.index["slices"].sum() == 1000 and cache.labels["fold"].nunique() == 5
    assert cache.labels[list(TARGETS)].isin((0, 1)).all().all()
    segmented = [cache.study(id) for id in cache.index.dropna(subset="segmentation_digest")["id"]]
    assert len(segmented) == 30 and box_truth(segmented)["has_box"].any() and len(ratio_truth(segmented)) == 1000


@pytest.mark.check
def test_all_steps_run_and_print_their_seconds_and_memory(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scale_tables", "--studies", "30", "--slices", "3600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [sum(line.startswith(name) for line in lines) for name in ("made-up", "exposure", "tables", "items")] == [
        1,
        1,
        1,
        4,
    ]
    assert "107 runs and tables" in done.stdout and "NO" not in "".join(line[-12:] for line in lines)
