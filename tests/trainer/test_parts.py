"""Tables that are made part by part are, bit by bit, those made of all runs at once."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import BOX
from cache_schema.errors import CacheError
from cache_schema.tables import content_digest, read_table, write_table
from trainer.tables.boxes import study_boxes
from trainer.tables.parts import made_by_part, parts, predicted_ids
from trainer.tables.pooling import mean_over_runs
from trainer.tables.ratios import vertebra_ratios

STUDIES, SLICES = [f"1.{number}" for number in range(7)], 9


def write_runs(out, held_out: list[list[str]]):
    """Runs with random predictions, in every column that a table reads. held_out: of each run its studies."""
    random, run_dirs = np.random.default_rng(len(held_out)), []
    for number, ids in enumerate(held_out):
        table = pd.DataFrame(
            [(id, z, 1 + z % 3) for id in ids for z in range(SLICES)], columns=["id", "z_index", "windows"]
        )
        table[[*BOX, "has_box", *TARGETS]] = random.random((len(table), 13)) * 3
        run_dirs.append(out / f"stage-A/fold{number}-seed1")
        write_table(run_dirs[-1] / "predictions.parquet", table.astype({"id": "str"}), "test", {})
    return run_dirs


def boxes(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    predicted = sorted({id for frame in predictions for id in frame["id"]} - {STUDIES[-1]})
    frame = pd.DataFrame({"id": predicted}).astype({"id": "str"})
    return study_boxes(predictions, frame.assign(rows=512, columns=512, slices=SLICES))


def means(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    return mean_over_runs([frame[["id", "z_index", *TARGETS]] for frame in predictions], ["id", "z_index"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(STUDIES), unique=True, min_size=1), min_size=1, max_size=6))
def test_a_table_is_the_same_whichever_runs_share_studies(tmp_path_factory, held_out):
    run_dirs = write_runs(tmp_path_factory.mktemp("runs"), held_out)
    every = [read_table(run_dir / "predictions.parquet") for run_dir in run_dirs]
    for make, keys in ((boxes, ["id"]), (vertebra_ratios, ["id", "z_index"]), (means, ["id", "z_index"])):
        assert content_digest(made_by_part(run_dirs, make, keys)) == content_digest(make(every))


def test_runs_that_share_a_study_are_one_part_and_others_are_not(tmp_path):
    a, b, c, d, e = STUDIES[:5]
    runs = write_runs(tmp_path, [[a], [b], [b, c], [d], [c, a], [e]])
    assert parts(runs) == [(runs[3],), (runs[0], runs[1], runs[2], runs[4]), (runs[5],)]
    assert predicted_ids(runs[2]) == {b, c}


def test_no_more_than_one_fold_is_read_at_a_time(tmp_path):
    runs = write_runs(tmp_path, [STUDIES[:2], STUDIES[2:4], STUDIES[:2], STUDIES[2:4]])
    seen = []
    made_by_part(runs, lambda frames: seen.append(len(frames)) or vertebra_ratios(frames), ["id", "z_index"])
    assert seen == [2, 2]


def test_without_a_run_there_is_nothing_to_make_a_table_from():
    with pytest.raises(CacheError, match="no predictions"):
        made_by_part([], vertebra_ratios, ["id", "z_index"])
    assert list(LEVELS) == list(TARGETS)[1:]
