"""A cropped cache: smaller, its own proof, and the same pixels at the same native coordinates."""

import numpy as np
import pandas as pd
import pytest
from made_studies import files_of, make_study

from cache_schema import Cache, CacheWriter
from cache_schema.errors import UsageError
from cache_schema.layout import TARGETS
from cache_schema.tables import write_table
from cache_schema.verify import verify
from preprocess.cli import run
from preprocess.crop import crop_cache
from trainer.data.augment import Augmentation
from trainer.data.items import Item
from trainer.data.order import Evaluation, ScheduledItem
from trainer.data.source import Source

IDS = ["1.2.3", "1.2.4", "1.2.5"]
BOXES = pd.DataFrame(
    {
        "id": IDS[:2],
        "x0": [5, 14],
        "y0": [6, 2],
        "x1": [12, 24],
        "y1": [10, 9],
        "z_from": [2, 0],
        "z_to": [17, 9],
        "source": "model",
        "runs": 1,
    }
)


@pytest.fixture
def cache(tmp_path):
    writer = CacheWriter(tmp_path / "cache")
    for seed, id in enumerate(IDS):
        writer.publish(make_study(id, 19 - 5 * seed, segmented=seed == 0, seed=seed))
    labels = pd.DataFrame({"id": IDS, **dict.fromkeys(TARGETS, 1), "fold": [2, 1, 0]})
    report = pd.DataFrame(
        [["1.2.3", "", "flagged", "gaps", "one"], ["1.2.9", "", "refused", "not_axial", "two"]],
        columns=["id", "file", "severity", "reason", "message"],
    )
    writer.finish(labels, report, made_by="a test", extra={"folds": "3"})
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "boxes.parquet", BOXES, "a test", {})
    return tmp_path / "boxes.parquet"


@pytest.mark.parametrize("margin", [0, 3, 1000])
def test_a_cropped_cache_gives_the_same_pixels_at_native_coordinates(cache, table, tmp_path, margin):
    result = crop_cache(cache, tmp_path / "small", boxes=table, margin=margin)
    assert (result.studies, result.without_box) == (2, ("1.2.5",)) and verify(tmp_path / "small") == []
    small, whole = Cache(tmp_path / "small"), Cache(cache)
    assert small.ids == IDS[:2] and small.index["rows"].equals(whole.index["rows"][:2])
    for row in BOXES.itertuples():
        part, study = small.study(row.id), whole.study(row.id)
        held = part.record.stored_region
        assert held[0] <= max(0, row.x0 - margin) and held[3] >= min(20, row.y1 + margin)
        assert np.array_equal(part.read(0, 9), study.read(0, 9, part.record.stored_region))
        box = (row.x0, row.y0, row.x1, row.y1)
        assert np.array_equal(part.read(3, 9, box), study.read(3, 9, box))
        assert part.record.origin.parent == study.record.content_digest != part.record.content_digest
        assert part.record.study_box.model_dump(exclude={"made_by"}) == {
            name: getattr(row, name) for name in BOXES.columns[1:7]
        }
        assert part.record.position == study.record.position and np.array_equal(part.z, study.z)
    assert np.array_equal(small.study("1.2.3").slice_box, whole.study("1.2.3").slice_box)
    assert small.record("1.2.3").segmentation_digest == whole.record("1.2.3").segmentation_digest
    if margin == 1000:
        assert (small.index["pixels"] == whole.index["pixels"][:2]).all()
    else:
        assert (small.index["pixels"] < whole.index["pixels"][:2]).all()


def test_training_reads_the_same_from_a_cropped_cache_as_from_the_whole(cache, table, tmp_path):
    crop_cache(cache, tmp_path / "small", boxes=table)
    boxes = {row.id: (row.x0, row.y0, row.x1, row.y1) for row in BOXES.itertuples()}
    drawing = Augmentation(16, seed=0)
    for id in IDS[:2]:
        for frames, first in ((3, 4), (12, 0)):
            place = ScheduledItem(0, Item(0, id, first, frames, Cache(cache).record(id).slices))
            samples = [
                Source(path, Evaluation([place.item], 1), drawing, boxes=boxes, keep_bytes=keep).sample(place)
                for path in (cache, tmp_path / "small")
                for keep in (0, 1 << 20)
            ]
            for sample in samples[1:]:
                for one, other in zip(samples[0], sample, strict=True):
                    assert np.array_equal(one, other)


def test_labels_and_report_of_the_kept_studies_come_along(cache, table, tmp_path):
    crop_cache(cache, tmp_path / "small", boxes=table)
    small = Cache(tmp_path / "small")
    assert small.labels.equals(Cache(cache).labels[:2])
    report = pd.read_csv(tmp_path / "small" / "report.csv", keep_default_na=False)
    assert report[["id", "reason"]].to_numpy().tolist() == [["1.2.3", "gaps"], ["1.2.5", "no_box"]]


def test_a_crop_goes_on_where_it_was_killed_and_ends_with_the_same_bytes(cache, table, tmp_path):
    crop_cache(cache, tmp_path / "small", boxes=table)
    before = files_of(tmp_path / "small")
    (tmp_path / "small" / "1.2.3" / "zarr.json").unlink()
    kept = (tmp_path / "small" / "1.2.4" / "zarr.json").stat().st_mtime_ns
    crop_cache(cache, tmp_path / "small", boxes=table)
    assert files_of(tmp_path / "small") == before
    assert (tmp_path / "small" / "1.2.4" / "zarr.json").stat().st_mtime_ns == kept
    crop_cache(cache, tmp_path / "small", boxes=table, margin=1)
    assert files_of(tmp_path / "small") != before and verify(tmp_path / "small") == []


def test_a_crop_of_a_crop_is_the_crop_of_the_whole(cache, table, tmp_path):
    crop_cache(cache, tmp_path / "larger", boxes=table, margin=4)
    crop_cache(tmp_path / "larger", tmp_path / "twice", boxes=table)
    result = crop_cache(cache, tmp_path / "once", boxes=table)
    assert result.without_box == ("1.2.5",)
    twice, once = files_of(tmp_path / "twice"), files_of(tmp_path / "once")
    for name in ("report.csv", "zarr.json"):  # the larger one no longer knows of the study without a box
        del twice[name], once[name]
    assert twice == once


def test_boxes_come_from_the_cache_where_no_table_is_named(cache, tmp_path, capsys):
    assert run(["crop", str(cache), str(tmp_path / "small")]) == 2
    assert "set-boxes" in capsys.readouterr().err and not (tmp_path / "small").exists()
    CacheWriter(cache).set_boxes(BOXES)
    assert run(["crop", str(cache), str(tmp_path / "small")]) == 3
    assert "2 studies" in capsys.readouterr().out
    assert Cache(tmp_path / "small").record("1.2.3").study_box == Cache(cache).record("1.2.3").study_box


def test_boxes_of_a_cropped_cache_must_lie_in_what_it_holds(cache, table, tmp_path):
    crop_cache(cache, tmp_path / "small", boxes=table)
    writer, before = CacheWriter(tmp_path / "small"), files_of(tmp_path / "small")
    with pytest.raises(UsageError, match=r"1\.2\.3: its box lies outside"):
        writer.set_boxes(BOXES.assign(x0=0))
    assert files_of(tmp_path / "small") == before
    writer.set_boxes(BOXES.assign(x0=BOXES["x0"] + 1))
    assert verify(tmp_path / "small") == []


@pytest.mark.parametrize(
    ("change", "words"), [({"x1": 25}, "outside"), ({"id": ["9", "8"]}, "no study"), ({"x1": 1}, "empty")]
)
def test_a_wrong_table_writes_nothing(cache, tmp_path, change, words):
    write_table(tmp_path / "wrong.parquet", BOXES.assign(**change), "a test", {})
    with pytest.raises(UsageError, match=words):
        crop_cache(cache, tmp_path / "small", boxes=tmp_path / "wrong.parquet")
    assert not (tmp_path / "small").exists()


def test_whole_studies_are_never_overwritten_by_their_parts(cache, table, tmp_path):
    before = files_of(cache)
    for out in (cache, cache / ".." / "cache"):
        with pytest.raises(UsageError, match="the cache itself"):
            crop_cache(cache, out, boxes=table)
    other = CacheWriter(tmp_path / "other")
    other.publish(make_study("1.2.3"))
    other.finish()
    with pytest.raises(UsageError, match="whole studies"):
        crop_cache(cache, tmp_path / "other", boxes=table)
    assert files_of(cache) == before and verify(tmp_path / "other") == []
