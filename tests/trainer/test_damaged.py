"""Files of finished runs and tables that are not as they were written: each is named or made again, and no table changes."""

import contextlib
import json
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from changes import resave
from flips import flip, flip_everything, make_plan

from cache_schema import Cache
from cache_schema.documents import SETTLED_SECONDS
from cache_schema.errors import CacheError, CspineError, UsageError
from cache_schema.tables import own_meta, read_table, table_meta, write_table
from trainer.leakage import exposure, lineage
from trainer.plan.keys import DONE, STALE, states
from trainer.process.command import warn_once
from trainer.run import run
from trainer.runs.identity import check_weights, recorded_config
from trainer.runs.inputs import digest_rows
from trainer.runs.weights import DIGEST, require_whole, weights_metadata
from trainer.settings.layers import load
from trainer.settings.stage_registry import stage_class

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tiny_cache, tmp_path_factory):
    """Two bbox runs and their tables."""
    return make_plan(tmp_path_factory.mktemp("whole"), tiny_cache, ["bbox"])


@pytest.fixture
def made(whole, tmp_path):
    """The same plan, whose files may be damaged: they are put back."""
    kept = shutil.copytree(whole.out, tmp_path / "kept")
    warn_once.cache_clear()
    yield whole
    shutil.rmtree(whole.out)
    shutil.copytree(kept, whole.out)


def flip_bit(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def run_of(made):
    return made.plan.runs[0]


def predicting(node, out: Path, *words: str):
    """Settings of a prediction by this run's weights elsewhere."""
    own = [word for word in node.words if not word.startswith("out=")]
    return load([*own, "mode=predict", f"out={out}", f"weights={node.output}", *words])


def test_a_flip_in_any_kind_of_file_is_named_or_made_again_and_changes_no_table(whole):
    kinds = {path.name: path for path in whole.files() if "logs" not in path.parts and "tracker" not in path.parts}
    expected = {"config.yaml", MODEL, "predictions.parquet", "exposure.parquet", "study_boxes.parquet"}
    assert expected | {"study_boxes.exposure.parquet", "scores.json", "metrics.jsonl"} <= set(kinds)
    done = flip(whole, [*kinds.values(), *(path for name, path in kinds.items() if name in expected)])
    assert not done.wrong and done.flips >= len(kinds)


@pytest.mark.parametrize("name", ["config.yaml", "predictions.parquet", "exposure.parquet", MODEL])
@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_has_lost_a_file_is_stale_and_made_again_with_what_follows(name, lost, made, capsys):
    node, cache, before = run_of(made), Cache(made.cache), made.tables()
    weights = node.output / MODEL
    trained = weights.stat().st_mtime_ns
    path = node.output / name
    path.unlink() if lost else flip_bit(path)
    if name != MODEL or lost:  # nobody is left to read the weights
        found = states(made.plan, cache)
        assert (
            (found[node.name] == STALE or lost)
            and found[node.name] != DONE
            and found["study_boxes"] == STALE
            and found[made.plan.runs[1].name] == DONE
        )
    assert run(load(node.words)) == node.output
    said = capsys.readouterr().err
    assert lost or said.count(f"{path}: ") == 1, said
    assert "Traceback" not in said and (weights.stat().st_mtime_ns == trained) == (name != MODEL)
    assert set(states(made.plan, cache).values()) == {DONE}
    made.make()
    assert made.tables() == before


def test_damaged_weights_are_set_aside_and_not_written_over(made, capsys):
    node = run_of(made)
    flip_bit(node.output / MODEL, 0.9)
    spoilt = (node.output / MODEL).read_bytes()
    run(load(node.words))
    aside = node.output / f".damaged-{MODEL}"
    assert aside.read_bytes() == spoilt and f"does not match its digest; train it again; it is now {aside}" in (
        capsys.readouterr().out
    )
    require_whole(node.output / MODEL)


def test_weights_of_another_run_without_settings_beside_them_are_set_aside_whole(made, capsys):
    node = run_of(made)
    resave(node.output / MODEL, key="0123456789", digest=None)
    (node.output / "config.yaml").unlink()
    held = (node.output / MODEL).read_bytes()
    run(load(node.words))
    assert (node.output.with_name(f".stale-{node.output.name}-01234567") / MODEL).read_bytes() == held
    assert "held a run of other settings or inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"version": "1"},
            f"was trained by version 1 of bbox; expected version {stage_class('bbox').version}; train it again",
        ),
        ({"version": None}, f"has no version of bbox; expected version {stage_class('bbox').version}; train it again"),
        ({"config": "{"}, "does not hold the settings it was trained with; train it again"),
        ({"seed": "7"}, "does not match its digest; train it again"),
        ({"key": None}, "holds weights of another program; expected a run of this trainer"),
    ],
)
def test_weights_of_another_version_or_with_other_metadata_are_refused_in_one_line(changes, line, made, tmp_path):
    node = run_of(made)
    resave(node.output / MODEL, **changes)
    settings = predicting(node, tmp_path, "split=all")
    with pytest.raises(UsageError) as error:
        run(settings)
    assert str(error.value).endswith(line) and not (tmp_path / "bbox-01B").exists()
    with pytest.raises(UsageError):
        check_weights(settings, Cache(made.cache).pixel_hash, node.output)


def test_weights_without_a_digest_are_taken_unchecked_and_named(made, tmp_path, capsys):
    node = run_of(made)
    assert len(weights_metadata(node.output / MODEL)[DIGEST]) == 64
    resave(node.output / MODEL, digest=None)
    run(predicting(node, tmp_path, "split=all"))
    assert capsys.readouterr().err.count("has no digest: its tensors are not checked") == 1


def test_a_run_without_its_exposure_is_not_scored_and_predicts_new_studies_all_the_same(made, tmp_path, capsys):
    node = run_of(made)
    (node.output / "exposure.parquet").unlink()
    with pytest.raises(CacheError, match=r"exposure.parquet: is missing"):
        exposure.of_finished(node.output)
    with pytest.raises(CacheError, match=r"exposure.parquet: is missing"):
        run(predicting(node, tmp_path))
    run(predicting(node, tmp_path, "split=all"))
    assert read_table(tmp_path / node.name / "exposure.parquet")["kind"].tolist() == ["unknown"]


def test_a_table_of_ours_without_its_lineage_is_told_from_one_from_elsewhere(made, tmp_path):
    table = made.out / "tables/study_boxes.parquet"
    assert lineage.kept_for_table(table)
    flip_bit(lineage.table_file(table))
    with pytest.raises(CacheError, match="does not match its digest"):
        lineage.kept_for_table(table)
    lineage.table_file(table).unlink()
    with pytest.raises(
        CacheError, match=r"study_boxes.exposure.parquet: is missing, .*; make study_boxes.parquet again"
    ):
        lineage.kept_for_table(table)
    write_table(tmp_path / "mine.parquet", read_table(table), "by hand", {})
    assert lineage.kept_for_table(tmp_path / "mine.parquet") is None


def test_settings_that_were_edited_after_the_run_are_not_what_it_wrote(made):
    node = run_of(made)
    path = node.output / "config.yaml"
    assert recorded_config(node.output)["stage"] == "bbox"
    path.write_text(path.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(
        UsageError, match=r"config.yaml: does not match the digest in its last line; start the run again"
    ):
        recorded_config(node.output)


def test_every_byte_of_a_table_counts(tmp_path):
    path, frame = tmp_path / "t.parquet", pd.DataFrame({"id": ["a", "b"], "x": [0.5, 1.0], "n": [1, None]})
    write_table(path, frame, "test", {"split": "held_out"})
    data = path.read_bytes()
    unseen = []
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            own_meta(path)
            unseen.append(place)
        except CacheError:
            pass
        with contextlib.suppress(CspineError):
            pd.testing.assert_frame_equal(read_table(path), frame, check_dtype=False)
    assert not unseen
    path.write_bytes(data)
    assert own_meta(path) == table_meta(path) and own_meta(path)["inputs"] == {"split": "held_out"}


def test_a_table_that_was_read_once_is_checked_again_when_it_changes(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, pd.DataFrame({"x": [0.5] * 1000}), "test", {})
    time.sleep(1.1 * SETTLED_SECONDS)
    for _ in range(2):
        assert len(read_table(path)) == 1000
    flip_bit(path)
    with pytest.raises(CacheError, match=r"t.parquet: (does not match its digest|is not a readable parquet file)"):
        read_table(path)


def test_a_number_has_one_digest_however_it_is_held():
    held = [
        pd.DataFrame({"id": ["a"], "C1": values})
        for values in ([0], [0.0], pd.array([0], "Int8"), pd.array([0], "Float32"), [False])
    ]
    assert len({digest_rows(frame.itertuples(index=False)) for frame in held}) == 1
    other = [("a", 1), ("a", None), ("a", 0.5), ("a", "0"), ("b", 0)]
    assert len({digest_rows([row]) for row in [("a", 0), *other]}) == 6
    assert digest_rows([("a", None)]) == digest_rows([("a", pd.NA)]) == digest_rows([("a", float("nan"))])


def test_a_log_with_flipped_bits_is_read_as_far_as_it_can_be(made):
    from trainer.runs.metrics_log import MetricsLog

    path = run_of(made).output / "metrics.jsonl"
    lines = MetricsLog(path.parent).lines()
    path.write_bytes(b'\xff{"step": 1}\n[1]\n{"steq": 1}\n{"step": "1"}\n' + path.read_bytes())
    assert MetricsLog(path.parent).lines() == lines
    MetricsLog(path.parent).rewind(10**9)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [line["step"] for line in lines]


@pytest.mark.check
def test_flips_all_below_a_plan_of_four_stages_and_weights_that_something_left_stands_on(tiny_cache, tmp_path, capsys):
    made = make_plan(tmp_path / "plan", tiny_cache)
    done = flip_everything(made, 25, seed=1)
    assert done.flips > 20 and not done.wrong
    backbone, stage4 = made.plan["slice_fracture-04F/fold0-seed1"], made.plan["study_fracture-04F/fold0-seed1"]
    before, cache = made.tables(), Cache(tiny_cache)
    flip_bit(backbone.output / MODEL, 0.9)
    stands_on_it = stage4.output / "predictions.parquet"
    warn_once.cache_clear()
    assert set(states(made.plan, cache).values()) == {DONE}, "nobody is left to read these weights"
    flip_bit(stands_on_it)
    capsys.readouterr()
    found = states(made.plan, cache)
    assert found[backbone.name] == found[stage4.name] == STALE and found["study_fracture-04F/fold1-seed1"] == DONE
    said = capsys.readouterr().err
    assert all(
        said.count(f"{path}: does not match its digest") == 1 for path in (backbone.output / MODEL, stands_on_it)
    )
    made.make()
    assert made.tables() == before and set(states(made.plan, cache).values()) == {DONE}
