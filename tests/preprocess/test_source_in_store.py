"""DICOM files in a store: what is asked of it, and that nothing wrong is taken for their pixels."""

import random
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
from dicom_files import dataset, dataset_of_frames, encode, expected_grey, picture, write, write_series, write_slice
from faulty_proxy import SOME_OF_EACH, Faults, faulty_proxy
from mutations import SYNTAXES, mutate
from pydicom import uid
from s3_server import environment
from stores import place

from cache_schema.errors import StudyRefused
from cache_schema.store_path import place_of
from preprocess.headers.inventory import scan
from preprocess.headers.opened import AHEAD, FIRST_BYTES
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

SLICES = 24

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.fixture
def s3(started_s3):
    with environment(started_s3.environment):
        yield started_s3


@pytest.fixture
def slow(s3):
    """The same server behind one that waits with each answer."""
    with (
        faulty_proxy(s3.endpoint, Faults(slow=1, seconds=0.1)) as proxy,
        environment({"AWS_ENDPOINT_URL": proxy.address}),
    ):
        yield proxy


def put(s3, folder, name):
    """Copies a folder into the store; returns its address."""
    for file in folder.iterdir():
        s3.client().upload_file(str(file), s3.bucket, f"{name}/{file.name}")
    return place(s3, name)


def plan_of(source):
    plans, findings = plan_studies(place_of(source))
    assert len(plans) == 1, findings
    return plans[0]


def series(s3, folder, name):
    write_series(folder, SLICES)
    return plan_of(put(s3, folder, name)), DicomPixels(plan_of(folder)).read(0, SLICES)


def write_all_kinds(folder):
    """Files that pydicom reads, as well as ordinary ones, broken ones, and ones that are no DICOM."""
    for number, syntax in enumerate(SYNTAXES):
        write_slice(folder / f"ordinary-{number}.dcm", syntax=syntax, bits=12, number=number)
    frames = [encode(picture(k, 300, 400), uid.JPEGLosslessSV1, 16) for k in range(3)]
    write(folder / "frames.dcm", dataset_of_frames(frames, picture(0, 300, 400), uid.JPEGLosslessSV1, range(3)))
    long = dataset(picture())
    long.add_new(0x00190010, "LO", "TEST")
    long.add_new(0x00191001, "OB", bytes(3 * FIRST_BYTES))
    write(folder / "long.dcm", long)
    bare = (folder / "ordinary-0.dcm").read_bytes()
    (folder / "bare.dcm").write_bytes(bare[132:])
    (folder / "notes.txt").write_text("nothing")
    (folder / "empty.dcm").touch()
    with ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "bare.dcm")
    chance = random.Random(1)
    for number in range(12):
        (folder / f"damaged-{number}.dcm").write_bytes(mutate(bare, chance))


def test_every_kind_of_file_is_what_it_is_in_a_folder(s3, tmp_path):
    write_all_kinds(tmp_path)
    here, there = scan(tmp_path, b"salt"), scan(place_of(put(s3, tmp_path, "kinds")), b"salt")

    def told(found):
        headers = sorted(repr(replace(header, path="", mtime_ns=0)) for header in found.headers)  # a slope may be NaN
        return headers, sorted(replace(finding, path="") for finding in found.unread), found.others

    assert told(there) == told(here)
    assert {header.frames for header in here.headers} == {1, 3}
    assert any(header.pixel_offset > FIRST_BYTES for header in here.headers)
    assert {finding.reason for finding in here.unread} >= {"archive", "not_dicom"}


def test_slices_are_asked_for_before_their_turn_each_once(s3, tmp_path, slow):
    plan, expected = series(s3, tmp_path, "in-turn")
    slow.clear()
    slow.most_at_once = 0
    assert np.array_equal(DicomPixels(plan).read(0, SLICES), expected)
    assert AHEAD / 2 < slow.most_at_once <= AHEAD
    assert len(slow.requests) == SLICES


def test_a_slice_that_changed_or_has_gone_refuses_its_study(s3, tmp_path):
    plan, _ = series(s3, tmp_path, "changing")
    key = place_of(plan.slices[20].header.path).key
    content = s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read()
    s3.client().put_object(Bucket=s3.bucket, Key=key, Body=content[:-1] + b"x")
    with pytest.raises(StudyRefused, match="changed after its header was read"):
        DicomPixels(plan).read(0, SLICES)
    s3.client().delete_object(Bucket=s3.bucket, Key=key)
    with pytest.raises(StudyRefused, match=r"can no longer be read \(FileNotFoundError"):
        DicomPixels(plan).read(0, SLICES)
    assert DicomPixels(plan).read(0, 20).any()


@pytest.mark.check
def test_a_failing_network_changes_no_pixel(s3, tmp_path):
    plan, expected = series(s3, tmp_path, "failing")
    with faulty_proxy(s3.endpoint, SOME_OF_EACH) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        for _ in range(4):
            assert np.array_equal(DicomPixels(plan).read(0, SLICES), expected)
        assert sum(proxy.injected.values()) > 3


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1])
def test_of_a_file_of_many_frames_each_read_fetches_its_own(s3, tmp_path, syntax):
    """Not the whole file for each frame."""
    images = [picture(k, 512, 512) for k in range(24)]
    frames = [encode(image, syntax, 16) for image in images]
    write(tmp_path / "1.dcm", dataset_of_frames(frames, images[0], syntax, range(24)))
    size = (tmp_path / "1.dcm").stat().st_size
    source = put(s3, tmp_path, f"frames-{syntax}")
    with faulty_proxy(s3.endpoint, Faults()) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        plan = plan_of(source)
        proxy.clear()
        pixels = DicomPixels(plan)
        assert np.array_equal(pixels.read(0, 2), expected_grey(np.stack(images[:2])))
        assert proxy.bytes_read < size * 0.6
