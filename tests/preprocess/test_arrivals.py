"""Studies of a folder that others write into: each is planned once it has stopped growing, as the whole tree would have it."""

import gzip
import json
import os
import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from dicom_files import STUDY, picture, write_slice

from cache_schema.errors import UsageError
from preprocess.arrivals.arrivals import Arrivals
from preprocess.series.planning import plan_studies

OTHER = f"{STUDY}.7"
QUIET = 60


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


time = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Minutes pass in no time."""
    for module in ("seen", "arrivals"):
        monkeypatch.setattr(f"preprocess.arrivals.{module}.time", time)


@pytest.fixture
def into(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def arrivals(into, tmp_path) -> Arrivals:
    return made(into, tmp_path)


def made(into: Path, tmp_path: Path) -> Arrivals:
    (tmp_path / "work").mkdir(exist_ok=True)
    return Arrivals(into, QUIET, tmp_path / "work")


def write(folder: Path, count: int = 3, study: str = STUDY, first: int = 1, name: str = "{}.dcm") -> None:
    for number in range(first, first + count):
        write_slice(folder / name.format(number), picture(number), z=-float(number), number=number, study=study)


def settled(arrivals: Arrivals, looks: int = 2) -> list[str]:
    """After as many looks, the last ones with a pause in between."""
    for look in range(looks):
        if look:
            time.sleep(QUIET * 1.1)
        arrivals.look()
    return [study.uid for study in arrivals.settled()]


def plans(arrivals: Arrivals):
    with arrivals.planned(arrivals.settled()) as planned:
        return planned


def test_a_study_is_settled_once_nothing_of_it_has_changed_for_a_while(arrivals, into):
    write(into, 2)
    assert settled(arrivals, 1) == []
    time.sleep(QUIET * 1.1)
    write(into, 1, first=3)
    assert settled(arrivals, 1) == [], "it has grown since"
    assert settled(arrivals) == [STUDY]
    (planned,) = plans(arrivals)
    assert len(planned.plan.slices) == 3 and planned.refusal is None


def test_plans_are_those_of_the_whole_tree(arrivals, into):
    write(into / "a")
    (into / "a/broken.dcm").write_bytes(b"no header")  # beside one study's files: it gets a flag
    write(into / "b", study=OTHER)
    write(into / "b", study=f"{STUDY}.8", name="x{}.dcm")
    (into / "b/broken.dcm").write_bytes(b"no header")  # beside two: it belongs to none
    (into / "notes.txt").write_text("text, and nothing else\n")
    assert len(settled(arrivals)) == 3
    found = {each.plan.id: each.plan for each in plans(arrivals)}
    whole, _ = plan_studies(into)
    assert {plan.id: (plan.flags, plan.files) for plan in whole} == {
        id: (plan.flags, plan.files) for id, plan in found.items()
    }
    assert found[STUDY].flags == ("unread_files",) and "unread_files" not in found[OTHER].flags
    assert [stray.reason for stray in arrivals.strays()] == ["not_dicom"]


def test_a_file_that_cannot_be_read_yet_is_waited_for_and_not_for_ever(arrivals, into):
    write(into)
    write(into, study=OTHER, name="x{}.dcm")
    assert settled(arrivals, 1) == []
    time.sleep(QUIET * 0.6)
    (into / "coming").write_bytes(b"\0" * 100)
    assert settled(arrivals, 1) == []
    time.sleep(QUIET * 0.6)
    assert settled(arrivals, 1) == [], "both are quiet, but the file may be of either"
    time.sleep(QUIET * 1.1)
    (into / "later").write_bytes(b"\0" * 100)  # came after both had been quiet
    assert settled(arrivals, 1) == [STUDY, OTHER]


def test_a_file_under_a_temporary_name_is_one_file(arrivals, into):
    write(into)
    (into / "1.dcm").rename(into / "1.dcm.part")
    assert settled(arrivals, 1) == []
    (into / "1.dcm.part").rename(into / "1.dcm")
    assert settled(arrivals) == [STUDY]
    (planned,) = plans(arrivals)
    assert [Path(path).name for path, _, _ in planned.plan.files] == ["1.dcm", "2.dcm", "3.dcm"]


def test_headers_of_files_that_have_not_changed_are_read_once(arrivals, into, monkeypatch):
    write(into)
    settled(arrivals)
    opened = []
    monkeypatch.setattr("preprocess.arrivals.seen.read_headers", lambda path, salt: opened.append(path))
    settled(arrivals)
    assert opened == []


def test_another_state_has_other_keys_and_the_same_one_the_same_also_in_the_next_process(arrivals, into, tmp_path):
    write(into)
    settled(arrivals)
    (before,), (planned,) = arrivals.settled(), plans(arrivals)
    again = made(into, tmp_path)
    settled(again)
    assert again.settled()[0].files == before.files and plans(again)[0].digest == planned.digest
    write(into, 1, first=9)
    settled(arrivals)
    (after,) = arrivals.settled()
    assert after.files > before.files and plans(arrivals)[0].digest != planned.digest
    (into / "9.dcm").unlink()
    assert settled(arrivals, 1) == [], "it has changed just now"
    settled(arrivals)
    assert arrivals.settled()[0].files == before.files


def test_a_file_that_is_written_over_with_the_size_and_time_of_before_is_found_out(arrivals, into):
    write(into)
    write(into, 1, study=OTHER, first=5, name="x")
    stat = os.stat(into / "x")
    assert set(settled(arrivals)) == {STUDY, OTHER}
    write(into, 1, study=f"{STUDY}.9", first=5, name="x")
    os.utime(into / "x", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert set(settled(arrivals)) == {STUDY, OTHER}, "nothing tells it"
    by = {each.study.uid: each for each in plans(arrivals)}
    assert by[STUDY].plan is not None and (by[OTHER].plan, by[OTHER].refusal) == (None, None)
    assert set(settled(arrivals)) == {STUDY, f"{STUDY}.9"}


def test_a_study_that_cannot_be_used_is_refused_with_its_reason(arrivals, into):
    write(into)
    data = (into / "2.dcm").read_bytes()
    (into / "2.dcm").write_bytes(data[:-100])
    settled(arrivals)
    (planned,) = plans(arrivals)
    assert planned.plan is None and planned.refusal.id == STUDY and planned.refusal.reason == "pixel_length"


def test_a_zip_is_a_folder_that_arrives_at_once(arrivals, into, tmp_path):
    write(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted((tmp_path / "a").iterdir()):
            archive.write(path, f"DOE_JOHN/{path.name}")
    data = (tmp_path / "whole.zip").read_bytes()
    (into / "DOE.zip").write_bytes(data[:-200])
    assert settled(arrivals) == []
    assert [(stray.number, stray.message) for stray in arrivals.strays()] == [(1, "a zip archive that is not whole")]
    (into / "DOE.zip").write_bytes(data)
    assert settled(arrivals) == [STUDY] and arrivals.strays() == []
    with ExitStack() as opened:
        (planned,) = opened.enter_context(arrivals.planned(arrivals.settled()))
        assert all(Path(path).is_file() for path, _, _ in planned.plan.files), "unpacked while it is read"
        folders = list((tmp_path / "work").glob(".unpacked-*"))
        assert len(folders) == 1
    assert not folders[0].exists()
    (kept,) = (tmp_path / "work").iterdir()
    assert list(json.loads(kept.read_text())) == [STUDY] and "DOE" not in kept.read_text() + kept.name
    again = made(into, tmp_path)
    settled(again)
    assert plans(again)[0].digest == planned.digest, "whatever the folder is called that it is unpacked into"


def test_another_archive_is_called_by_its_own_name(arrivals, into):
    (into / "a.dcm.gz").write_bytes(gzip.compress(b"one image"))
    assert settled(arrivals) == []
    assert [stray.message for stray in arrivals.strays()] == ["a gzip archive; unpack it"]


def test_pieces_in_a_folder_and_in_two_zips_are_one_study(arrivals, into, tmp_path):
    write(into / "a", 2)
    for name, first in (("x", 3), ("y", 5)):
        write(tmp_path / name, 2, first=first)
        shutil.make_archive(str(into / name), "zip", tmp_path / name)
    assert settled(arrivals) == [STUDY]
    with arrivals.planned(arrivals.settled()) as planned:
        assert [each.slice_number for each in planned[0].plan.slices] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_goes_away_is_an_error_until_it_is_back(arrivals, into):
    write(into)
    settled(arrivals)
    (before,) = arrivals.settled()
    into.rename(into.with_name("away"))
    with pytest.raises(UsageError, match="no such file or folder"):
        arrivals.look()
    into.with_name("away").rename(into)
    arrivals.look()
    assert arrivals.settled() == [before]
