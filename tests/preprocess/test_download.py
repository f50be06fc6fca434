"""Downloading: everything that can be known before is said before, in one line; what was fetched is not fetched again."""

import os
import zipfile

import pytest

from cache_schema.errors import UsageError
from preprocess.cli import run
from preprocess.download import COMPETITION, download


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No client, no account, a home of its own."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def install_client(folder, script):
    """A program named kaggle, as Kaggle's client is one."""
    (folder / "bin" / "kaggle").write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(folder / "bin" / "kaggle", 0o755)


def test_free_disk_is_asked_for_first(alone):
    with pytest.raises(UsageError, match=r"GB are free, \d+ GB too few; expected \d+ GB"):
        download(alone / "set", needed=10**18)
    assert not (alone / "set").exists()


def test_without_client_or_account_one_line_says_what_to_do(alone):
    with pytest.raises(UsageError, match=r"not installed; install it .*accept the rules at .*run this again"):
        download(alone / "set", needed=1)
    install_client(alone, "exit 0")
    with pytest.raises(UsageError, match="no account to use; make one, accept the rules"):
        download(alone / "set", needed=1)
    assert not (alone / "set").exists()


def test_on_the_command_line_that_is_exit_2_and_one_line(alone, capsys):
    assert run(["download", str(alone / "set")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_client_that_fails_is_one_line(alone, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    install_client(alone, "exit 7")
    with pytest.raises(UsageError, match="exit status 7; accept the rules"):
        download(alone / "set", needed=1)


def test_what_the_project_needs_is_unpacked_once(alone, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    with zipfile.ZipFile(alone / "made.zip", "w") as packed:
        for name in ("train.csv", "train_images/1.2/1.dcm", "segmentations/1.2.nii", "test_images/9/1.dcm", "../out"):
            packed.writestr(name, name)
    install_client(alone, f'[ "$3" = -c ] && /bin/cp {alone}/made.zip "$6/$4.zip"')
    told = []
    assert download(alone / "set", needed=1, tell=told.append) == 3
    files = {p.relative_to(alone / "set").as_posix() for p in (alone / "set").rglob("*") if p.is_file()}
    assert files == {f"{COMPETITION}.zip", "train.csv", "train_images/1.2/1.dcm", "segmentations/1.2.nii"}
    before = (alone / "set" / "train.csv").stat().st_mtime_ns
    assert download(alone / "set", needed=1, tell=told.append) == 3
    assert (alone / "set" / "train.csv").stat().st_mtime_ns == before


def test_a_broken_archive_is_named(alone, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    install_client(alone, 'echo broken > "$6/$4.zip"')
    with pytest.raises(UsageError, match=r"\.zip: cannot be unpacked"):
        download(alone / "set", needed=1)
