"""What the machine refuses is one line that names the place as it was typed, never a traceback; the next run mends it."""

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
import pytest
from faults import BUILDS, COMMANDS, WITHOUT_WORKERS, Failed, Places, Trial, faults_of, quietly
from planting import planted
from tiny_rsna import IDS, files_of, write_rsna, write_study

from cache_schema import CacheWriter
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache
from preprocess.build.state import StudyState
from preprocess.build.task import StudyTask, build_study
from preprocess.series.planning import plan_studies

FEW, MANY = 3, 40
"""operations of each command that fail: of a test, of a check"""


@pytest.fixture(scope="module")
def places(tmp_path_factory, scheduler):
    folder = tmp_path_factory.mktemp("faults")
    source = write_rsna(folder / "rsna")
    build_cache(source, folder / "whole", folds=2, scheduler=scheduler, tell=lambda line: None)
    return Places.make(folder / "places", source, folder / "whole")


def check_failures(trial, count, seed):
    failed, last = Failed(), trial.operations
    for nth in sorted(random.Random(seed).sample(range(1, last + 1), min(last, count))):
        trial.fail_here(nth, failed)
    assert failed.tried and failed.wrong == [], "\n".join(failed.wrong)


@pytest.mark.parametrize("name", WITHOUT_WORKERS)
def test_a_failure_at_any_operation_is_one_line_and_the_next_run_mends_it(places, name):
    check_failures(Trial(places, COMMANDS[name]), FEW, seed=1)


@pytest.mark.parametrize("name", BUILDS)
def test_so_is_one_of_a_build(places, scheduler, name):
    check_failures(Trial(places, COMMANDS[name], ("--scheduler", scheduler)), FEW, seed=1)


@pytest.mark.check
@pytest.mark.parametrize("name", COMMANDS)
def test_many_failures_at_any_operation(places, scheduler, name):
    extra = ("--scheduler", scheduler) if name in BUILDS else ()
    check_failures(Trial(places, COMMANDS[name], extra), MANY, seed=2)


@pytest.mark.check
def test_a_failure_in_each_process_of_a_build_is_a_row_of_the_report_or_one_line(places):
    trial, failed = Trial(places, COMMANDS["build-cache"], ("--workers", "2")), Failed()
    for nth in (4, 25):  # workers have fewer operations: these are met there
        trial.fail_everywhere(nth, failed)
    assert failed.tried == 2 and failed.wrong == [], "\n".join(failed.wrong)


def test_a_line_names_the_typed_path_and_the_study_below_a_cache(places, monkeypatch):
    cache = places.fresh()["cache"]
    monkeypatch.chdir(cache.parent)  # a path is repeated as it was typed
    labels, boxes = (str(places.folder / name) for name in ("labels.csv", "boxes.parquet"))
    calls = {
        cache / ".build" / "lock": (["labels", "cache", labels], "cache: read-only file system"),
        cache / "report.csv": (["crop", "cache", "new", "--boxes", boxes], "cache: read-only file system"),
        cache.parent / "new" / ".build" / "new": (
            ["crop", str(cache), "../made/new", "--boxes", boxes, "--margin", "1"],
            r"\.\./made/new: read-only file system \(study 1\.2\.826\.[0-9.]*\.77\.[1-4]\)",
        ),
    }
    for file, (words, line) in calls.items():
        for nth in range(8, 16) if file.name == "new" else (1,):
            shutil.rmtree("new", ignore_errors=True)
            with planted([file], nth, errno.EROFS):
                status, _, err = quietly(words)
            if status:  # else it met a mkdir of a folder that is there, which passes: studies are cropped side by side
                break
        assert status == 2 and re.fullmatch(f"error: {line}", err.splitlines()[-1]), err
    with planted([cache / IDS[2]], 3, errno.EIO):
        status, out, _ = quietly(["verify", "cache"])
    assert status == 1 and out.count("\n") == 1 and out.startswith(f"{IDS[2]}: ") and "input/output error" in out


def test_what_fails_in_a_worker_keeps_its_reason_and_is_tried_again_by_the_next_build(places, tmp_path):
    plan = next(plan for plan in plan_studies(places.source)[0] if plan.id == IDS[0])
    mask = places.source / "segmentations" / f"{IDS[0]}.nii"
    writer = CacheWriter(tmp_path / "cache")
    task = StudyTask(IDS[0], plan, mask, writer.path, None, "options", "sources")

    def done():
        state = StudyState.load(writer, IDS[0])
        return state is not None and state.is_current(writer, IDS[0], "options", "sources")

    with planted([writer.build_folder / "new"], 5, errno.ENOSPC):
        result = build_study(task)
    assert result.refused.message.endswith("(no space left on device)") and not done()
    with planted([mask], 1, errno.EIO):
        result = build_study(task)
    assert [(row.reason, row.message) for row in result.findings] == [
        ("segmentation_unopened", "cannot be read (input/output error)")
    ]
    assert result.refused is None and not done()
    assert build_study(task).findings == () and done()


def test_names_below_the_source_are_shown_where_paths_are_asked_for_or_where_they_were_typed(places, tmp_path):
    table = places.source / "train.csv"
    build = ["build-cache", str(places.source), str(tmp_path / "new")]
    for words, line in (
        (build, f"{places.source}: input/output error, for a file or folder below it; give --paths to name it"),
        ([*build, "--paths"], f"{table}: input/output error"),
        ([*build, "--labels", str(table)], f"{table}: input/output error"),
    ):
        with planted([table], 1, errno.EIO):
            assert quietly(words) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(places):
    cache, before = places.fresh()["cache"], files_of(places.whole)
    with planted([], 0, errno.ENOLCK, locks=True):
        status, _, err = quietly(["labels", str(cache), str(places.folder / "labels.csv")])
    assert status == 2 and err.startswith(f"error: {cache}: cannot be locked (no locks available); keep the cache on")
    assert err.count("\n") == 1 and files_of(cache) == before


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 250] * 20)])
def test_a_name_that_is_too_long_is_one_line(places, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["build-cache", str(places.source), name],
        ["build-cache", name, "new"],
        ["build-cache", str(places.source), "new", "--labels", name],
        ["build-cache", str(places.source), "new", "--pseudonymise", name],
        ["crop", str(places.whole), name, "--boxes", str(places.folder / "boxes.parquet")],
        ["crop", name, "new"],
        ["labels", str(places.whole), name],
        ["set-boxes", str(places.whole), name],
        ["inspect", str(places.whole), IDS[0], "--png", name],
        *([command, name] for command in ("verify", "inspect", "phantom", "download")),
    ):
        status, _, err = quietly(words)
        assert (status, err.count("\n"), "file name too long" in err.lower()) == (2, 1, True), (words[0], err)
    assert list(tmp_path.iterdir()) == []


def launched(words, before=(), **options):
    command = [*before, sys.executable, "-m", "preprocess", *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=300, **options)
    return done.returncode, done.stdout, done.stderr


def test_names_that_are_not_utf_8_are_shown_escaped_and_read_as_any_other(places, scheduler, tmp_path):
    odd = os.fsdecode(b"M\xfcller")
    source = tmp_path / odd
    write_study(source, 1)
    bad = source / "train_images" / IDS[0] / os.fsdecode(b"\xe9.dcm")
    bad.write_text("no DICOM file")
    cache = tmp_path / os.fsdecode(b"c\xe4che")
    words = ["build-cache", str(source), str(cache), "--folds", "2", "--scheduler", scheduler, "--paths"]
    status, out, err = launched(words)
    assert status in (0, 3) and rb"c\udce4che: 1 studies" in out and b"Traceback" not in err, err
    report = pd.read_csv(cache / "report.csv", keep_default_na=False)
    assert report["file"].str.endswith(r"\udce9.dcm").any() and verify(cache) == []
    (tmp_path / "labels.csv").write_text(f"StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n{IDS[0]}" + ",1" * 8)
    for words in (["labels", cache, tmp_path / "labels.csv"], ["inspect", cache], ["verify", cache]):
        assert quietly(list(map(str, words)))[0] == 0
    status, _, err = launched(["labels", cache, tmp_path / odd / "none.csv"])
    assert status == 2 and err.startswith(b"error: ") and err.count(b"\n") == 1


def test_a_full_standard_output_is_one_line(places):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "preprocess", "inspect", str(places.whole)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: no space left on device") and done.stderr.count("\n") == 1


def mount(*words):
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")


@contextmanager
def small_disk(folder, kilobytes):
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def sound(status, out, err, places):
    assert faults_of((status, out, err), (places.source, places.more)) == []


@pytest.mark.check
@pytest.mark.parametrize("kilobytes", [4, 40, 120, 200])
def test_a_disk_that_fills_is_said_in_words_and_with_room_the_same_build_goes_on(
    places, scheduler, tmp_path, kilobytes
):
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        words = ["build-cache", str(places.source), str(disk / "cache"), "--scheduler", scheduler]
        words += ["--folds", str(places.folder / "labels.csv")]
        status, out, err = quietly(words)
        sound(status, out, err, places)
        report = disk / "cache" / "report.csv"
        said = err + (report.read_text() if report.exists() else "")
        assert status in (2, 3) and "no space left on device" in said, (status, out, err, said)
        mount("-o", "remount,size=64m", disk)
        assert quietly(words)[0] == 0 and verify(disk / "cache") == []
        whole = tmp_path / "whole"
        assert quietly([*words[:2], str(whole), *words[3:]])[0] == 0
        assert files_of(disk / "cache") == files_of(whole)


@pytest.mark.check
@pytest.mark.parametrize("name", ["crop", "labels", "set-boxes", "inspect a study", "phantom"])
def test_a_full_disk_leaves_no_half_file_of_the_other_commands(places, tmp_path, name):
    trial, paths = Trial(places, COMMANDS[name]), places.fresh()
    with small_disk(tmp_path / "disk", 65536) as disk:
        if COMMANDS[name].changes != "new":
            shutil.copytree(paths["cache"], disk / "cache")
            paths["cache"] = disk / "cache"
        paths["new"] = disk / "new"
        with open(disk / "filler", "wb") as filler:
            used = shutil.disk_usage(disk)
            filler.write(bytes(used.free - 8192 if name == "crop" else used.free))
        status, out, err = quietly(trial.words(paths))
        sound(status, out, err, places)
        assert status == 2 and "no space left on device" in err and str(disk) in err, (status, out, err)
        assert not (disk / "new.png").exists() and not (disk / "new.partial").exists()
        (disk / "filler").unlink()
        assert quietly(trial.words(paths))[0] == trial.status and trial.files(paths) == trial.outcome


@pytest.mark.check
def test_a_read_only_cache_can_be_read_and_whatever_would_change_it_is_one_line(places, scheduler, tmp_path):
    (tmp_path / "shown").mkdir()
    mount("--bind", places.whole, tmp_path / "shown")
    try:
        mount("-o", "remount,ro,bind", tmp_path / "shown")
        names = {"cache": tmp_path / "shown", "cropped": tmp_path / "shown" / "new", "new": tmp_path / "shown" / "new"}
        for name, command in COMMANDS.items():
            words = Trial(places, command, ("--scheduler", scheduler) * (name in BUILDS))
            paths = places.fresh() | names
            status, out, err = quietly(words.words(paths))
            sound(status, out, err, places)
            reads = name in ("verify", "inspect")
            assert status == (0 if reads else 2) and ("read-only file system" in err) != reads, (name, status, err)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "shown")], check=True)


def bounded():
    """Words before a command that takes root's right to read everything."""
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.check
def test_what_may_not_be_read_or_listed_is_one_line_or_a_row(places, tmp_path):
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and setpriv is not here to take that right")
    source = shutil.copytree(places.source, tmp_path / "rsna")
    cache = shutil.copytree(places.whole, tmp_path / "cache")
    labels, boxes = (shutil.copy(places.folder / name, tmp_path) for name in ("labels.csv", "boxes.parquet"))
    build = ["build-cache", source, tmp_path / "new", "--workers", "1", "--folds", "2"]
    calls = {
        source / "train_images" / IDS[1]: build,
        source / "train_images": build,
        source / "segmentations": build,
        source / "train.csv": build,
        source: build,
        cache / IDS[0] / "z": ["verify", cache],
        cache / IDS[0]: ["labels", cache, labels],
        cache / "index.parquet": ["inspect", cache],
        cache / "zarr.json": ["set-boxes", cache, boxes],
        cache: ["crop", cache, tmp_path / "new", "--boxes", boxes],
        labels: ["labels", cache, labels],
        boxes: ["set-boxes", cache, boxes],
    }
    for closed, words in calls.items():
        mode = os.stat(closed).st_mode
        os.chmod(closed, 0)
        try:
            status, out, err = (part if isinstance(part, int) else part.decode() for part in launched(words, bounded()))
        finally:
            os.chmod(closed, mode)
        assert faults_of((status, out, err), (source, source)) == [], closed
        said = any(words in out + err for words in ("ermission denied", "not readable"))
        assert (status in (1, 2) and said) or status == 3, (closed, status, out, err)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
