"""DICOM files in a store: what is asked of it, and that nothing wrong is taken for their pixels."""

import random
import tempfile
import warnings
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from dicom_files import dataset, dataset_of_frames, encode, expected_grey, picture, write, write_series, write_slice
from faulty_proxy import SOME_OF_EACH, Faults, faulty_proxy
from mutations import SYNTAXES, mutate
from pydicom import uid
from pydicom.encaps import encapsulate
from s3_server import environment
from stores import place
from tiny_rsna import files_of

from cache_schema.errors import CspineError, StudyRefused
from cache_schema.store_path import place_of
from preprocess.cli import run
from preprocess.headers.inventory import scan
from preprocess.headers.opened import AHEAD, FIRST_BYTES
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies
from preprocess.warnings_off import warnings_off

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
    client = s3.client()
    for file in folder.iterdir():
        client.upload_file(str(file), s3.bucket, f"{name}/{file.name}")
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


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1])
def test_a_file_of_many_frames_is_fetched_once(s3, tmp_path, syntax, table):
    images = [picture(k, 512, 512) for k in range(12)]
    frames = [encode(image, syntax, 16) for image in images]
    ds = dataset_of_frames(frames, images[0], syntax, range(12))
    if not table and syntax.is_encapsulated:
        ds.PixelData = encapsulate(frames, has_bot=False)
    size = write(tmp_path / "1.dcm", ds).stat().st_size
    source = put(s3, tmp_path, f"frames-{syntax}-{table}")
    with faulty_proxy(s3.endpoint, Faults()) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        plan = plan_of(source)
        proxy.clear()
        pixels = DicomPixels(plan)
        expected = expected_grey(np.stack(images))
        assert np.array_equal(pixels.read(0, 8), expected[:8]) and np.array_equal(pixels.read(8, 12), expected[8:])
        assert pixels.source_digest() == DicomPixels(plan_of(tmp_path)).source_digest()
        assert size < proxy.bytes_read < 1.1 * size + 1000
    plans = []
    for number in range(2):
        ds.SeriesDescription = str(number)
        write(tmp_path / "1.dcm", ds)
        put(s3, tmp_path, f"frames-{syntax}-{table}")
        plans.append(plan_of(source))
    with pytest.raises(StudyRefused, match="changed after its header was read"):
        DicomPixels(plans[0]).read(0, 1)
    assert np.array_equal(DicomPixels(plans[1]).read(0, 12), expected)


def test_no_room_for_a_copy_is_no_fault_of_the_source(s3, tmp_path, monkeypatch):
    frames = [encode(picture(k), uid.ExplicitVRLittleEndian, 16) for k in range(3)]
    ds = dataset_of_frames(frames, picture(), uid.ExplicitVRLittleEndian, range(3))
    plan = plan_of(put(s3, write(tmp_path / "1.dcm", ds).parent, "no-room"))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with pytest.raises(CspineError, match=r"could not be copied to the temporary folder, TMPDIR \(not a directory"):
        DicomPixels(plan).read(0, 3)


def test_a_build_says_of_a_store_what_it_says_of_a_folder(s3, tmp_path):
    """Unreadable files beside a study, names with all characters, marks of folders, masks without a study."""
    source = tmp_path / "source"
    write_series(source / "a@b#c?d", 5, study="1.2.1")
    write_series(source / "e", 5, study="1.2.2")
    (source / "e" / "x.dcm").write_bytes(b"no DICOM")
    (source / "segmentations").mkdir()
    (source / "segmentations" / "1.2.9.nii").write_bytes(b"")
    client = s3.client()
    for file in source.rglob("*.*"):
        if file.is_file():
            client.upload_file(str(file), s3.bucket, f"said/{file.relative_to(source)}")
    for mark in ("said/", "said/e/", "said/e/nothing/", "said/segmentations/"):
        client.put_object(Bucket=s3.bucket, Key=mark, Body=b"")
    here, there = tmp_path / "here", tmp_path / "there"
    for at, cache in ((source, here), (place(s3, "said"), there)):
        assert run(["build-cache", str(at), str(cache), "--workers", "1", "--paths"]) == 0
    said = [pd.read_csv(cache / "report.csv") for cache in (here, there)]
    for table, top in zip(said, (str(source), place(s3, "said")), strict=True):
        assert table["file"].dropna().str.startswith(f"{top}/").all()
        table["file"] = table["file"].str.removeprefix(top)
    pd.testing.assert_frame_equal(*said)
    assert {"unread_files", "unused_mask"} <= set(said[0]["reason"])
    of_report = ("report.csv", "zarr.json")
    both = [{name: data for name, data in files_of(cache).items() if name not in of_report} for cache in (here, there)]
    assert both[0] == both[1]


def test_a_broken_table_of_a_store_is_named_by_its_address(s3, tmp_path, capfd):
    write_series(tmp_path / "source", 5)
    (tmp_path / "source" / "train.csv").write_text("StudyInstanceUID\n1\n")
    address = put(s3, tmp_path / "source", "broken-table")
    assert run(["build-cache", address, str(tmp_path / "cache")]) == 2
    assert capfd.readouterr().err.startswith(f"error: {address}/train.csv, line 1: ")


def test_an_object_whose_name_cannot_be_read_is_one_line(s3, tmp_path, capfd):
    s3.client().put_object(Bucket=s3.bucket, Key="names/a//1.dcm", Body=b"DICOM")
    assert run(["build-cache", place(s3, "names"), str(tmp_path / "cache")]) == 2
    said = capfd.readouterr().err
    assert "a name cannot be read" in said and "rename the object" in said and said.count("\n") == 1


def test_warnings_are_off_until_the_last_thread_has_left():
    first, second = warnings_off(), warnings_off()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("Invalid value: 'A^NAME'", stacklevel=1)
        second.__exit__(None, None, None)
        warnings.warn("said", stacklevel=1)
    assert [str(each.message) for each in told] == ["said"]
