"""Headers walked in memory say what pydicom says, and whatever is not ordinary is left to pydicom."""

import random

import pytest
from dicom_files import dataset, encode, picture, write, write_slice
from mutations import SYNTAXES, mutate
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from preprocess.findings import Finding
from preprocess.headers import read as reading
from preprocess.headers.read import read_headers
from preprocess.headers.values import HEADER_TAGS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.fixture
def by_pydicom(monkeypatch):
    """`read_headers` as if no file were ordinary."""

    def read(path):
        with monkeypatch.context() as patch:
            patch.setattr(reading, "walk", lambda *_: None)
            return read_headers(path)

    return read


def is_walked(path):
    head = path.read_bytes()[: reading.HEAD_BYTES]
    return reading.walk(head, HEADER_TAGS, reading._walked_syntaxes()) is not None


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_ordinary_files_are_walked_and_give_the_same_header(tmp_path, by_pydicom, syntax):
    path = write_slice(tmp_path / "1.dcm", syntax=syntax, bits=12, signed=False, kernel="BONE", AcquisitionNumber="")
    assert is_walked(path) == (syntax != uid.ExplicitVRBigEndian)
    assert read_headers(path) == by_pydicom(path) and not read_headers(path)[0].problems


def test_what_is_not_ordinary_is_pydicoms(tmp_path, by_pydicom):
    frames = dataset(picture(), syntax=uid.JPEGLosslessSV1, NumberOfFrames="2")
    frames.PixelData = encapsulate([encode(picture(k), uid.JPEGLosslessSV1, 16) for k in range(2)])
    long = dataset(picture())
    long.add_new(0x00190010, "LO", "TEST")
    long.add_new(0x00191001, "OB", b"x" * 20_000)
    nested = dataset(picture())
    nested.ReferencedStudySequence = [Dataset()]
    nested["ReferencedStudySequence"].is_undefined_length = True
    for number, ds in enumerate((frames, long, nested)):
        path = write(tmp_path / f"{number}.dcm", ds)
        assert not is_walked(path)
        found = read_headers(path)
        assert found == by_pydicom(path) and len(found) == ds.get("NumberOfFrames", 1)


def test_a_sequence_of_known_length_is_stepped_over(tmp_path, by_pydicom):
    ds = dataset(picture())
    item = Dataset()
    item.Rows = 7
    ds.ReferencedStudySequence = [item]
    path = write(tmp_path / "1.dcm", ds)
    assert is_walked(path) and read_headers(path) == by_pydicom(path)


def test_damaged_files_are_judged_as_pydicom_reads_them(tmp_path, by_pydicom):
    chance, walked = random.Random(3), 0
    whole = [
        write_slice(tmp_path / f"{n}.dcm", syntax=syntax, bits=12).read_bytes() for n, syntax in enumerate(SYNTAXES)
    ]
    path = tmp_path / "damaged.dcm"
    for number in range(600):
        path.write_bytes(mutate(whole[number % len(whole)], chance))
        expected = by_pydicom(path)
        if isinstance(expected, Finding) and expected.reason == "unreadable_header":
            continue  # pydicom gives up over elements that nobody asks for
        assert read_headers(path) == expected
        walked += is_walked(path)
    assert walked > 100
