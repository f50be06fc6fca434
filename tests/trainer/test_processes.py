"""Real launches: two CPU processes for every stage, and one line for a user's mistake however many processes there are."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cache_schema import Cache
from cache_schema.tables import read_table, write_table
from trainer import train
from trainer.tables.pseudo import pseudo_labels
from trainer.tables.truth import ratio_truth

ROOT = Path(__file__).resolve().parents[2]


def torchrun(words, **kwargs):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        *map(str, words),
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400, **kwargs
    )


@pytest.fixture(scope="module")
def pseudo(tiny_cache, tmp_path_factory):
    """Pseudo labels from the segmentations, zeros for the other studies."""
    cache = Cache(tiny_cache)
    known = ratio_truth(cache.study(id) for id in cache.ids if cache.record(id).segmentation_digest)
    other = [
        pd.DataFrame({"id": id, "z_index": range(cache.record(id).slices)}) for id in set(cache.ids) - set(known["id"])
    ]
    path = tmp_path_factory.mktemp("pseudo") / "pseudo_labels.parquet"
    write_table(
        path, pseudo_labels(pd.concat([known, *other], ignore_index=True).fillna(0.0), cache.labels), "truth", {}
    )
    return path


def test_two_processes_train_and_predict_all_four_stages(tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path):
    common = [f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}", "fold=0", f"boxes={true_boxes}"]
    stages = {
        "bbox": [],
        "vertebrae": ["variant=04A"],
        "slice_fracture": [f"pseudo={pseudo}"],
        "study_fracture": [f"backbone={tmp_path / 'slice_fracture-04F/fold0-seed1'}"],
    }
    lines = "\n".join(" ".join([f"stage={stage}", *common, *more]) for stage, more in stages.items())
    (tmp_path / "stages.txt").write_text(lines)
    done = torchrun([ROOT / "tests/trainer/launch_each.py", tmp_path / "stages.txt"])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("2 process(es)") == 4
    for stage, more in stages.items():
        (run,) = tmp_path.glob(f"{stage}-*/fold0-seed1")
        by_two = read_table(run / "predictions.parquet")
        again = dict(word.split("=", 1) for word in [*common, *more])
        again = {**again, "out": tmp_path / "alone", "weights": run, "mode": "predict"}
        by_one = read_table(train(stage=stage, **again) / "predictions.parquet")
        pd.testing.assert_frame_equal(by_two, by_one, rtol=1e-4, atol=2e-4)


def test_a_mistake_is_one_line_from_one_of_two_processes(tiny_cache, tmp_path):
    done = torchrun([ROOT / "trainer/run.py", "stage=bbox", f"cache={tiny_cache}", f"out={tmp_path}", "train.epoch=3"])
    assert done.returncode != 0
    assert done.stderr.count("error: no setting train.epoch; did you mean train.epochs?") == 1
