"""A source of many files: what a file costs in memory, in looks at the disk, and in lines of progress."""

import gc
import os
import re
import shutil
import sys
import time
import tracemalloc
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import pytest
from dicom_files import picture, write_slice
from hypothesis import given
from hypothesis import strategies as st
from tiny_rsna import IDS, files_of, touch_later

from benchmarks.scale import write_source
from cache_schema.documents import SETTLED_SECONDS
from cache_schema.writer import CacheWriter
from preprocess.build.dask_pool import Pool
from preprocess.build.isolated_task import Died
from preprocess.build.job import BuildJob
from preprocess.build.planned import studies_to_build
from preprocess.build.state import load_source, options_digest
from preprocess.headers.inventory import scan
from preprocess.headers.packed import FULL, MOST_SMALL, PackedHeaders, unpack
from preprocess.natural_order import natural_key, runs_in_natural_order
from preprocess.progress import Steps
from preprocess.series.planning import plan_studies

MOST_BYTES_A_FILE = 200
SEEN: list[tuple[str, str]] | None = None


@contextmanager
def opened_and_listed(source):
    """What is opened, and which folders are listed, below a folder: the interpreter's own events."""
    global SEEN
    if not _hook.added:
        sys.addaudithook(_hook)
        _hook.added = True
    SEEN, found = [], {"open": set(), "os.scandir": set()}
    try:
        yield found
    finally:
        seen, SEEN = SEEN, None
        for event, path in seen:
            if path.startswith(str(source)):
                found[event].add(os.path.relpath(path, source))


def _hook(event, arguments):
    if SEEN is not None and event in ("open", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        SEEN.append((event, os.fspath(arguments[0])))


_hook.added = False


def job_of(folder, files, limit=None):
    """A build of so many files in studies of 352."""
    source = folder / f"{files}"
    if not source.exists():
        write_source(source, files)
    writer = CacheWriter(folder / f"cache {files}")
    return BuildJob(source, writer, None, None, None, options_digest(None), limit, False, False, lambda line: None)


def run_here(function, tasks):
    return ((number, function(task)) for number, task in enumerate(tasks))


def memory_of_a_build(folder, files):
    """Bytes at the peak, and when all is planned: listing, digest, headers and plans as a build has them."""
    job = job_of(folder, files)
    gc.collect()
    tracemalloc.start()
    try:
        planned = studies_to_build(job, scan(folder / f"{files}"), run_here)
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(study.slices for study in planned.waiting) == files and planned.findings == []
    return peak, kept


@pytest.mark.check
def test_a_file_costs_two_hundred_bytes_until_it_is_decoded(tmp_path):
    memory_of_a_build(tmp_path, 352)  # what is loaded and cached once
    found = [memory_of_a_build(tmp_path, 352 * studies) for studies in (2, 4, 6, 8)]
    for sizes in zip(*found, strict=True):
        # of three steps one may hold a jump: the interpreter's table of interned strings doubles now and then
        more = [(larger - smaller) / (352 * 2) for smaller, larger in pairwise(sizes)]
        assert median(more) < MOST_BYTES_A_FILE, more


@pytest.mark.parametrize("limit", [None, 2])
def test_workers_plan_what_one_process_plans(tmp_path, limit, monkeypatch):
    """In whatever order they end, and also where one dies."""
    monkeypatch.setattr("preprocess.build.planned.BYTES_A_TASK", 1)
    job = job_of(tmp_path, 4 * 352, limit)
    _, empty, gap, _ = sorted((job.source / "train_images").iterdir())
    for file in empty.iterdir():
        file.write_bytes(b"")
    (gap / "100.dcm").unlink()
    plans, findings = plan_studies(job.source)
    assert len(plans) == 3 and {finding.id for finding in findings} == {empty.name, gap.name}
    tasks = []

    def backwards(function, given):
        tasks.extend(given)
        return reversed(list(run_here(function, tasks)))

    def dying(function, given):
        return ((number, Died("was killed") if number == 1 else result) for number, result in run_here(function, given))

    with Pool(2, None, lambda line: None) as pool:
        found = [studies_to_build(job, scan(job.source), run) for run in (pool.run, backwards, dying)]
    assert len(tasks) == 3  # the empty one goes with the next
    for planned in found:
        assert planned.ids == {plan.id for plan in plans}
        kept = plans[:limit]
        assert [(study.id, study.slices) for study in planned.waiting] == [(p.id, len(p.slices)) for p in kept]
        for study, plan in zip(planned.waiting, kept, strict=True):
            found_plan = unpack(study.plan)
            assert [each.path for each in found_plan.images] == [each.path for each in plan.images]
            assert (found_plan.grid, found_plan.study_uid) == (plan.grid, plan.study_uid)
        assert planned.findings == [f for f in findings if limit is None or f.id <= kept[-1].id]


def test_headers_that_come_one_by_one_are_packed_together(tmp_path):
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", number=n + 1)
    (first, *_) = headers = scan(tmp_path).headers
    for _ in range(6):
        headers = headers + headers
    packed = PackedHeaders()
    for header in headers:
        packed.add(PackedHeaders([header]))
    key = lambda header: header.path  # noqa: E731
    assert sorted(packed, key=key) == sorted(headers, key=key) and first in headers
    assert len(packed._full) + len(packed._small) < len(headers) / FULL + MOST_SMALL + 2


def test_a_study_whose_files_lie_in_many_folders_is_planned_as_from_one(tmp_path):
    for study in range(3):
        for k in range(40):
            about = {"z": -2.0 * k, "number": k + 1, "study": f"1.2.3.{study + 1}"}
            for path in (f"one/{study}/{k + 1}.dcm", f"many/{k % 7}/{k}/{study}/{k + 1}.dcm"):
                write_slice(tmp_path / path, picture(k), **about)
    (tmp_path / "many" / "3" / "3" / "1" / "broken.dcm").write_bytes(b"")
    one, found = plan_studies(tmp_path / "one")
    many, found_too = plan_studies(tmp_path / "many")
    beside = {("1.2.3.2", "not_dicom"), ("1.2.3.2", "unread_files")}
    assert found == [] and {(f.id, f.reason) for f in found_too} == beside
    for a, b in zip(one, many, strict=True):
        assert (a.id, a.grid, a.slice_number.tolist()) == (b.id, b.grid, b.slice_number.tolist())
        assert [s.header.sop_uid for s in a.slices] == [s.header.sop_uid for s in b.slices] and len(a.slices) == 40


NAMES = st.text("01a./é٣", min_size=1, max_size=4).filter(lambda name: name.strip("/.") == name)


@given(st.sets(NAMES, max_size=12))
def test_files_of_folders_within_folders_come_in_natural_order_of_their_paths(names):
    """Compared with sorting whole paths. Names with slashes make folders; `01` and `1` may stand beside each other."""
    paths = {os.path.normpath(name) for name in names}
    paths = {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}
    files: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}
    for path in sorted(paths):
        *above, name = ("top", *path.split("/"))
        files.setdefault("/".join(above), []).append(name)
        for n in range(1, len(above)):
            folders.setdefault("/".join(above[:n]), set()).add(above[n])
    runs = runs_in_natural_order("top", files, {name: sorted(found) for name, found in folders.items()})
    got = [f"{folder}/{name}" for folder, members in runs for name in members]
    assert got == sorted((f"top/{path}" for path in paths), key=natural_key)


def test_progress_counts_files_and_studies_from_the_first_batch_on(build, monkeypatch, capsys):
    monkeypatch.setattr("preprocess.build.job.FILES_READ_HERE", 0)
    monkeypatch.setattr("preprocess.build.job.FILES_A_TASK", 7)
    assert build().exit_status == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " studies, " in line and "files" in line]
    assert re.fullmatch(r"[12] studies, [57] of 40 files, \d+ files/s, \d+ s left", lines[0]), lines
    assert re.fullmatch(r"4 studies, 40 of 40 files, \d+ files/s, 0 s left", lines[-1]), lines


def test_progress_says_what_is_not_known_beforehand_as_a_plain_count():
    steps = Steps("listing", folders=None, files=None)
    steps.advance(folders=1, files=12)
    assert re.fullmatch(r"listing: 1 folders, 12 files, \d+ files/s", steps.text)


def test_an_unchanged_source_is_not_read(build, source):
    """A file with other bytes, and size and time as before, is the proof."""
    build()
    file = source / "train_images" / IDS[0] / "3.dcm"
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with opened_and_listed(source) as seen:
        result = build(scheduler="tcp://127.0.0.1:1")
    assert (result.skipped, build.told) == (4, [])
    assert not any(path.startswith("train_images/") for path in seen["open"])


@pytest.fixture
def trusted(build, source, tmp_path):
    """A source with a folder in a folder, built; `trusted()` builds it again by the times of folders."""
    deep = source / "train_images" / "more"
    shutil.move(source / "train_images" / IDS[3], deep / "deep" / "er")
    time.sleep(1.1 * SETTLED_SECONDS)
    build()

    def again():
        with opened_and_listed(source / "train_images") as again.seen:
            return build(trust_mtime=True)

    return again


def test_with_trusted_times_a_look_at_each_folder_is_enough(trusted, build):
    assert trusted().skipped == 4 and build.told == []
    assert trusted.seen == {"open": set(), "os.scandir": {".", "more", "more/deep"}}


def test_trusted_times_miss_a_file_rewritten_in_place_and_nothing_else(trusted, build, source):
    file = source / "train_images" / IDS[0] / "3.dcm"
    write_slice(file, picture(7), z=96.0, number=3, study=IDS[0])
    touch_later(file)
    assert trusted().published == 0 and build.told == []
    assert build().published == 1 and trusted().published == 0
    os.rename(file, file.with_name("30.dcm"))
    assert trusted().published == 1
    time.sleep(1.1 * SETTLED_SECONDS)
    assert build().published == 0 and trusted().published == 0  # keeps the times that have settled
    assert trusted.seen["os.scandir"] == {".", "more", "more/deep"}
    write_slice(source / "train_images" / "more" / "deep" / "er" / "99.dcm", z=0.0, number=99, study=IDS[3])
    assert trusted().published == 1
    shutil.copytree(file.parent, source / "train_images" / "more" / "copies")
    trusted()
    assert trusted.seen["open"]


def test_with_trusted_times_a_damaged_cache_is_made_whole(trusted, source, tmp_path, build):
    before = files_of(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / IDS[1])
    assert trusted().published == 1 and files_of(tmp_path / "cache") == before
    shutil.rmtree(tmp_path / "cache" / ".build")
    assert trusted().published == 4 and files_of(tmp_path / "cache") == before


def test_times_that_had_just_changed_are_not_kept(build, source, tmp_path):
    os.utime(source / "train_images" / IDS[0])
    build()
    digest, folders = load_source(tmp_path / "cache")
    assert len(digest) == 64 and len(folders) < 1 + len(IDS)
    time.sleep(1.1 * SETTLED_SECONDS)
    build()
    assert len(load_source(tmp_path / "cache")[1]) == 1 + len(IDS)


def test_what_is_kept_of_a_source_names_no_file_or_folder(trusted, tmp_path):
    (kept,) = (tmp_path / "cache" / ".build").glob("source.json")
    assert re.fullmatch(
        r'\{"files":"[0-9a-f]{64}","folders":\{("\d+:\d+":\[\d+,(true|false)\],?)+\}\}\n', kept.read_text()
    )
