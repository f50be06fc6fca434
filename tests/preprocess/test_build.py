"""Builds: whole, resumable, the same bytes however they came about, and one failing study never stops the others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import numpy as np
import pandas as pd
import pytest
from dicom_files import expected_grey
from tiny_rsna import HEIGHTS, IDS, PREFIX, SEGMENTED, files_of, hu_of, labels_of, report_of

from cache_schema import Cache
from cache_schema.errors import UsageError
from cache_schema.tables import table_meta
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache
from preprocess.labels import replace_labels


def test_the_rsna_layout_is_found_and_decoded_to_plain_arithmetic(built):
    cache = Cache(built)
    assert cache.ids == IDS and verify(built) == []
    for n, id in enumerate(IDS, start=1):
        study = cache.study(id)
        assert np.array_equal(study.read(0, 10), expected_grey(hu_of(n)))
        assert np.allclose(study.z, HEIGHTS) and study.slice_number.tolist() == list(range(1, 11))
        assert (study.slice_box is not None) == (id in SEGMENTED) and study.record.source_digest
    for n in (1, 2):
        labels = labels_of(n)
        rows, columns = np.nonzero(labels[7])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert cache.study(IDS[n - 1]).slice_box[7].tolist() == box
        assert cache.study(IDS[n - 1]).vertebra_ratio[7].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_labels_and_balanced_folds_are_written(built):
    labels = Cache(built).labels
    assert labels["patient_overall"].tolist() == [1, 0, 1, 0] and labels["C2"].tolist() == [0, 0, 0, 0]
    for members in (labels["patient_overall"] == 1, labels["id"].isin(SEGMENTED)):
        assert sorted(labels["fold"][members]) == [0, 1]
    assert table_meta(built / "labels.parquet")["made_by"] == "preprocess build-cache"


def test_headers_read_by_workers_give_the_same_bytes(built, build, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.build.job.FILES_READ_HERE", 0)
    monkeypatch.setattr("preprocess.build.job.FILES_A_TASK", 7)
    assert build().exit_status == 0
    assert files_of(tmp_path / "cache") == files_of(built)


def test_local_processes_give_the_same_bytes_as_a_running_scheduler(made, built, tmp_path):
    told = []
    result = build_cache(made, tmp_path / "cache", folds=2, workers=1, tell=told.append)
    assert result.exit_status == 0 and result.published == 4 and result.slices == 40
    assert files_of(tmp_path / "cache") == files_of(built)
    assert any("http://127.0.0.1" in line for line in told)


def test_a_failing_study_is_a_row_and_the_others_are_kept(build, source, tmp_path):
    broken = source / "train_images" / IDS[0] / "4.dcm"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    result = build()
    assert (result.published, result.refused, result.exit_status) == (3, 1, 3)
    rows = report_of(tmp_path / "cache")
    assert rows[rows["severity"] == "refused"][["id", "file"]].to_numpy().tolist() == [[IDS[0], "4"]]
    assert Cache(tmp_path / "cache").ids == IDS[1:] and verify(tmp_path / "cache") == []
    assert build(max_refused=0).exit_status == 1 and build(max_refused=1).exit_status == 3
    broken.write_bytes(whole)
    assert build().exit_status == 0 and report_of(tmp_path / "cache").empty


def test_a_study_whose_files_went_bad_leaves_the_cache(build, source, tmp_path):
    build()
    broken = source / "train_images" / IDS[0] / "4.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert build().exit_status == 3 and Cache(tmp_path / "cache").ids == IDS[1:]
    assert verify(tmp_path / "cache") == []


def test_nothing_but_refused_studies_is_nothing_done(build, source):
    for id in IDS:
        (source / "train_images" / id / "1.dcm").write_bytes(b"")
        broken = source / "train_images" / id / "4.dcm"
        broken.write_bytes(broken.read_bytes()[:-100])
    result = build()
    assert (result.studies, result.refused, result.exit_status) == (0, 4, 2)


def test_a_source_without_dicom_leaves_no_cache_behind(tmp_path, scheduler):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match="holds no DICOM files"):
        build_cache(tmp_path / "source", tmp_path / "cache", scheduler=scheduler)
    assert not (tmp_path / "cache").exists()


def test_pixels_only_looks_for_neither_labels_nor_segmentations(build, source, tmp_path):
    (source / "train.csv").write_text("of,something\nelse,1\n")
    assert build(pixels_only=True).exit_status == 0
    cache = Cache(tmp_path / "cache")
    assert cache.ids == IDS and cache.index["segmentation_digest"].isna().all()


def test_other_labels_or_folds_in_passing_are_an_error_that_names_the_way(build, source, tmp_path):
    build()
    before = files_of(tmp_path / "cache")
    with pytest.raises(UsageError, match="preprocess labels"):
        build(folds=4)
    (source / "train.csv").write_text((source / "train.csv").read_text().replace(f"{IDS[1]},0,0", f"{IDS[1]},1,1"))
    with pytest.raises(UsageError, match=f"1 studies have other labels, first {IDS[1]}.*preprocess labels"):
        build()
    assert files_of(tmp_path / "cache") == before


def test_a_source_without_labels_gets_nulls_and_folds(build, source, tmp_path):
    (source / "train.csv").unlink()
    build()
    labels = Cache(tmp_path / "cache").labels
    assert labels.drop(columns=["id", "fold"]).isna().all(axis=None) and sorted(labels["fold"]) == [0, 0, 1, 1]


def test_a_limit_takes_the_first_studies_and_the_rest_can_follow(build, built, tmp_path):
    assert build(limit=2).published == 2 and Cache(tmp_path / "cache").ids == IDS[:2]
    result = build()
    assert (result.published, result.skipped) == (2, 2) and verify(tmp_path / "cache") == []
    studies = {name: digest for name, digest in files_of(built).items() if name.startswith("1.2")}
    assert {name: digest for name, digest in files_of(tmp_path / "cache").items() if name.startswith("1.2")} == studies


def test_a_killed_build_leaves_no_partial_study_and_ends_with_the_same_bytes(source, built, build, tmp_path):
    cache = tmp_path / "cache"
    command = [
        sys.executable,
        "-m",
        "preprocess",
        "build-cache",
        str(source),
        str(cache),
        "--folds",
        "2",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/zarr.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(cache.glob("*/zarr.json"))
    for problem in verify(cache):
        assert problem.endswith("on disk but not in the index"), problem
    build()
    assert files_of(cache) == files_of(built)


def test_two_builds_at_once_lose_nothing(source, built, scheduler, tmp_path):
    def run(_):
        return build_cache(source, tmp_path / "cache", folds=2, scheduler=scheduler, tell=lambda line: None)

    with ThreadPool(2) as pool:
        results = pool.map(run, range(2))
    assert sorted(result.published for result in results) == [0, 4]
    assert files_of(tmp_path / "cache") == files_of(built)


def test_no_scheduler_is_one_clear_line(build, monkeypatch):
    monkeypatch.setattr("preprocess.build.dask_pool.CONNECT_SECONDS", 2)
    with pytest.raises(UsageError, match="no Dask scheduler"):
        build(scheduler="tcp://127.0.0.1:1")


def test_neither_names_nor_paths_of_the_source_get_into_the_cache_or_what_is_told(build, source, tmp_path):
    """The files carry PatientName SECRET^NAME; the folder below is named after a patient too."""
    secret = source / "train_images" / "SMITH_JOHN"
    shutil.move(source / "train_images" / IDS[0], secret)
    (secret / "SMITH.dcm").write_bytes(b"no dicom")
    (secret / "4.dcm").write_bytes((secret / "4.dcm").read_bytes()[:-100])
    assert build().exit_status == 3
    for path in (tmp_path / "cache").rglob("*"):
        assert "SMITH" not in path.name
        if path.is_file():
            assert not any(word in path.read_bytes() for word in (b"SECRET", b"SMITH", b"rsna/")), path
    assert not any("SMITH" in line or "SECRET" in line for line in build.told)
    build(paths=True)
    assert report_of(tmp_path / "cache")["file"].str.endswith(("SMITH.dcm", "4.dcm", "")).all()
    assert report_of(tmp_path / "cache")["file"].str.contains("SMITH").any()


def test_pseudonyms_replace_every_uid_and_the_key_decides_them(build, source, scheduler, tmp_path):
    (tmp_path / "key").write_text("a secret of sixteen bytes or more")
    broken = source / "train_images" / IDS[0] / "4.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert build(pseudonymise=tmp_path / "key").published == 3
    cache = Cache(tmp_path / "cache")
    assert all(id.startswith("2.25.") for id in cache.ids) and verify(tmp_path / "cache") == []
    assert sorted(cache.labels["patient_overall"]) == [0, 0, 1]
    for path in (tmp_path / "cache").rglob("*"):
        assert PREFIX not in path.name and (path.is_dir() or PREFIX.encode() not in path.read_bytes()), path
    assert build(pseudonymise=tmp_path / "key").published == 0
    table = pd.read_csv(source / "train.csv").assign(patient_overall=1, C7=1)
    table.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(UsageError, match=r"no study of the cache.*--pseudonymise"):
        replace_labels(tmp_path / "cache", tmp_path / "new.csv")
    assert replace_labels(tmp_path / "cache", tmp_path / "new.csv", None, tmp_path / "key") == (3, 3)
    assert (Cache(tmp_path / "cache").labels["C7"] == 1).all() and verify(tmp_path / "cache") == []
    (tmp_path / "other").write_text("another secret of sixteen bytes")
    build_cache(source, tmp_path / "again", pseudonymise=tmp_path / "other", scheduler=scheduler)
    assert not set(Cache(tmp_path / "again").ids) & set(cache.ids)
    (tmp_path / "short").write_text("short")
    with pytest.raises(UsageError, match="too short"):
        build(pseudonymise=tmp_path / "short")
