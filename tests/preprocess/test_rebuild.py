"""A build over an earlier one: what is done is skipped, what changed is built again, and the report says what is left."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial

import pandas as pd
from dicom_files import write_slice
from tiny_rsna import (
    HEIGHTS,
    IDS,
    PREFIX,
    files_of,
    hu_of,
    report_of,
    times_of,
    touch_later,
    write_study,
)

from cache_schema import Cache, CacheWriter
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache
from preprocess.build.state import StudyState, options_digest
from preprocess.labels import replace_labels


def test_a_second_build_with_nothing_changed_starts_no_worker_and_writes_nothing(build, tmp_path):
    build()
    before = times_of(tmp_path / "cache")
    result = build(scheduler="tcp://127.0.0.1:1")
    assert (result.published, result.skipped, result.exit_status) == (0, 4, 0) and build.told == []
    assert times_of(tmp_path / "cache") == before


def test_with_other_labels_boxes_or_a_limit_nothing_changed_still_costs_a_stat_a_file(build, source, tmp_path):
    cache = tmp_path / "cache"
    build(limit=3)
    CacheWriter(cache).set_boxes(pd.DataFrame({"id": IDS, "x0": 1, "y0": 1, "x1": 9, "y1": 9, "z_from": 0, "z_to": 5}))
    table = pd.read_csv(source / "train.csv").assign(patient_overall=1, C7=1)
    table.to_csv(tmp_path / "other.csv", index=False)
    replace_labels(cache, tmp_path / "other.csv")
    before = times_of(cache)
    build(limit=3, scheduler="tcp://127.0.0.1:1")
    assert build.told == [] and times_of(cache) == before and (Cache(cache).labels["C7"] == 1).all()
    writer = CacheWriter(cache)
    writer.remove(IDS[1])
    writer.finish()
    assert build(limit=3).published == 1 and verify(cache) == []


def test_the_state_of_a_build_may_be_deleted(build, built, tmp_path):
    build()
    shutil.rmtree(tmp_path / "cache" / ".build")
    assert build().published == 4 and files_of(tmp_path / "cache") == files_of(built)


def test_only_a_changed_study_is_made_again(build, source, tmp_path):
    build()
    before, kept = times_of(tmp_path / "cache"), Cache(tmp_path / "cache").record(IDS[2])
    file = source / "train_images" / IDS[1] / "3.dcm"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    touch_later(file)
    result = build()
    after = times_of(tmp_path / "cache")
    assert (result.published, result.skipped) == (1, 3) and verify(tmp_path / "cache") == []
    changed = {path.split("/")[-3 if "c.0" in path else -2] for path in before if after[path] != before[path]}
    assert not changed & {IDS[0], IDS[2], IDS[3]} and Cache(tmp_path / "cache").record(IDS[2]) == kept


def test_a_replaced_study_loses_its_box_and_the_report_says_so_until_it_has_another(build, source, tmp_path):
    cache = tmp_path / "cache"
    build()
    boxes = pd.DataFrame({"id": IDS, "x0": 1, "y0": 1, "x1": 9, "y1": 9, "z_from": 0, "z_to": 5})
    CacheWriter(cache).set_boxes(boxes)
    assert build().published == 0 and (Cache(cache).index["x0"] == 1).all()
    touch_later(source / "train_images" / IDS[0] / "1.dcm")
    build()
    assert Cache(cache).record(IDS[0]).study_box is None and Cache(cache).record(IDS[1]).study_box is not None
    assert report_of(cache)[["id", "reason"]].to_numpy().tolist() == [[IDS[0], "study_box_lost"]]
    CacheWriter(cache).set_boxes(boxes)
    build()
    assert report_of(cache).empty and verify(cache) == []
    shutil.rmtree(cache / IDS[2])  # as one does with a damaged study
    build()
    assert report_of(cache)[["id", "reason"]].to_numpy().tolist() == [[IDS[2], "study_box_lost"]]


def test_a_damaged_study_in_the_cache_is_made_again(build, built, tmp_path):
    build()
    os.remove(tmp_path / "cache" / IDS[0] / "pixels" / "c.1.0.0")
    (tmp_path / "cache" / IDS[1] / "zarr.json").write_text("{}")
    assert build().published == 2 and files_of(tmp_path / "cache") == files_of(built)


def test_a_study_that_is_no_longer_in_the_source_stays_and_is_reported(build, source, tmp_path):
    build()
    shutil.rmtree(source / "train_images" / IDS[3])
    assert build().exit_status == 0 and Cache(tmp_path / "cache").ids == IDS
    said = report_of(tmp_path / "cache")[["id", "reason"]].to_numpy().tolist()
    assert said == [["", "labels_mismatch"], [IDS[3], "not_in_source"]]
    shutil.rmtree(tmp_path / "cache" / IDS[3])
    assert verify(tmp_path / "cache") == [f"{IDS[3]}: in the index but not on disk"]
    build()
    assert Cache(tmp_path / "cache").ids == IDS[:3] and verify(tmp_path / "cache") == []


def test_a_report_is_never_that_of_an_earlier_build(build, source, tmp_path):
    build()
    study, broken = source / "train_images" / IDS[3], source / "train_images" / "broken.dcm"
    shutil.move(study, tmp_path / "elsewhere")
    broken.symlink_to("nowhere")  # a reason that may pass, so that the build is not saved as finished
    build()
    assert "not_in_source" in set(report_of(tmp_path / "cache")["reason"])
    shutil.move(tmp_path / "elsewhere", study)
    broken.unlink()
    build()
    assert len(report_of(tmp_path / "cache")) == 0


def test_a_cache_made_by_earlier_rules_is_judged_again_pixels_and_masks_included(source, tmp_path, scheduler):
    """What an earlier version left: the same files, options of its rules, and no flag that it did not know."""
    for z in range(10):
        path = source / "train_images" / IDS[3] / f"{z + 1}.dcm"
        write_slice(path, hu_of(4)[z] + 1024, z=HEIGHTS[z], number=z + 1, study=IDS[3])  # no air: an offset is missing
    cache = tmp_path / "cache"
    build = partial(build_cache, source, cache, folds=2, scheduler=scheduler, tell=lambda line: None)
    build()
    writer, found = CacheWriter(cache), report_of(cache)
    assert found["reason"].tolist() == ["hu_implausible"] and build().published == 0
    for id in IDS:
        state = StudyState.load(writer, id)
        replace(state, options=options_digest(None, rules=1), findings=()).save(writer, id)
    finished = cache / ".build" / "finished.json"
    finished.write_text(json.dumps(json.loads(finished.read_text()) | {"fingerprint": "of earlier rules"}))
    assert build().published == 4
    assert report_of(cache).equals(found) and verify(cache) == []
    assert build().published == 0


def test_prune_takes_out_what_the_source_no_longer_has(build, source, tmp_path):
    build()
    shutil.rmtree(source / "train_images" / IDS[3])
    build()  # nothing changes from here on but what is asked for
    result = build(prune=True)
    assert (result.studies, result.exit_status) == (3, 0) and Cache(tmp_path / "cache").ids == IDS[:3]
    assert report_of(tmp_path / "cache")["reason"].tolist() == ["labels_mismatch"] and verify(tmp_path / "cache") == []


def test_a_new_study_joins_and_the_others_keep_their_folds(build, source, tmp_path):
    build()
    before = Cache(tmp_path / "cache").labels
    write_study(source, 5)
    with (source / "train.csv").open("a") as table:
        table.write(f"{PREFIX}.5,1,0,1,0,0,0,0,0\n")
    assert build().published == 1
    labels = Cache(tmp_path / "cache").labels
    assert labels.iloc[:4].equals(before) and labels["C2"].tolist() == [0, 0, 0, 0, 1]
    assert labels["fold"].isin((0, 1)).all() and verify(tmp_path / "cache") == []
