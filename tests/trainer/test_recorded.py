"""Paths that a run recorded, after its RUNS was moved."""

from pathlib import Path

import pytest

from trainer.runs.recorded import rerooted


@pytest.mark.parametrize(
    ("path", "old", "found"),
    [
        ("RUNS/tables/a.parquet", "RUNS", "new/tables/a.parquet"),
        ("/data/RUNS/tables/a.parquet", "/data/RUNS/", "new/tables/a.parquet"),
        ("./RUNS/x/../bbox/m", "RUNS", "new/bbox/m"),
        ("tables/a.parquet", ".", "new/tables/a.parquet"),
        ("/data/RUNS2/tables/a.parquet", "RUNS", "/data/RUNS2/tables/a.parquet"),
        ("/data/RUNS2/a.parquet", "/data/RUNS", "/data/RUNS2/a.parquet"),
        ("boxes.parquet", "/data/RUNS", "boxes.parquet"),
    ],
)
def test_what_lay_below_runs_is_looked_for_below_the_runs_there_are(path, old, found):
    assert rerooted(Path(path), Path(old), Path("new")) == Path(found)
