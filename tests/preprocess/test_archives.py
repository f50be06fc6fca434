"""A zip of DICOM files: whatever is in it, one line that names nothing of it, and nothing left behind."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from preprocess.archives import unpacked

NAME = "DOE_JOHN"
ROOT = Path(__file__).resolve().parents[2]


def archive(path, names, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as made:
        for name in names:
            made.writestr(name, bytes(range(256)) * 200)
    return path


@pytest.mark.parametrize(
    ("names", "kind", "line"),
    [
        ([NAME + "x" * 300], zipfile.ZIP_STORED, "cannot be unpacked: file name too long"),
        ([f"{NAME}/1.dcm", NAME], zipfile.ZIP_STORED, "cannot be unpacked: is a directory"),
        ([NAME], zipfile.ZIP_DEFLATED, "is a damaged zip"),
        ([NAME], zipfile.ZIP_BZIP2, "is a damaged zip"),
        ([NAME], zipfile.ZIP_LZMA, "is a damaged zip"),
    ],
)
def test_what_cannot_be_unpacked_is_one_line_without_its_names(names, kind, line, tmp_path):
    path = archive(tmp_path / "a.zip", names, kind)
    if kind != zipfile.ZIP_STORED:
        content = bytearray(path.read_bytes())
        start = 30 + len(names[0]) + 9  # behind the header of LZMA
        content[start : start + 60] = bytes(255 - byte for byte in content[start : start + 60])
        path.write_bytes(content)
    with pytest.raises(UsageError, match=line) as error, unpacked(path, tmp_path):
        pass
    assert NAME not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_lead_out_of_the_folder_stay_in_it(tmp_path):
    path = archive(tmp_path / "a.zip", [f"../../{NAME}/1", f"/{NAME}/2"])
    (tmp_path / "beside").mkdir()
    with unpacked(path, tmp_path / "beside") as folder:
        assert sum(each.is_file() for each in folder.rglob("*")) == 2
    assert not list((tmp_path / "beside").iterdir())


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path):
    path, out = archive(tmp_path / "a.zip", [NAME]), tmp_path / "out"
    out.mkdir()
    code = (
        "import os; from pathlib import Path; from preprocess.archives import unpacked; "
        f"held = unpacked({str(path)!r}, Path({str(out)!r})); held.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    (left,) = out.iterdir()
    with unpacked(path, out) as held:
        assert left.is_dir(), "it may still be in use"
        for folder in (left, held):
            os.utime(folder, (1, 1))
        with unpacked(path, out) as second:
            assert not left.exists() and (held / NAME).is_file() and (second / NAME).is_file()
    assert not list(out.iterdir())
