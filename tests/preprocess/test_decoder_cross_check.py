"""Decoders that cannot be trusted: two that disagree, one that is alone, one that hangs, pictures of one single value."""

import time

import numpy as np
import pytest
from dicom_files import STUDY, dataset, encode, picture, write, write_series, write_slice
from pydicom import uid
from pydicom.encaps import encapsulate

from cache_schema import CacheWriter
from cache_schema.errors import StudyRefused
from cache_schema.verify import verify
from preprocess import open_study
from preprocess.build.dask_pool import Pool
from preprocess.build.isolated_task import Died
from preprocess.build.task import StudyTask, build_study
from preprocess.build.watchdog import deadline
from preprocess.decoders import PLUGINS, decoder_names
from preprocess.findings import REASONS
from preprocess.pixels.decode import decode_stored
from preprocess.pixels.decoder_cross_check import check_decoders, decoders_agree, first_of_each_kind
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

SYNTAXES = [
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.JPEGLosslessSV1, uid.JPEGLossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless),
]


def frame_they_read_differently() -> bytes:
    """A JPEG Lossless frame that lost some bytes on the way: decoders fill what is missing each in its own way, in silence."""
    whole = encode(picture(), uid.JPEGLosslessSV1, 16)
    return whole[:400] + whole[440:]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("bits, signed", [(12, False), (12, True), (16, True)])
def test_two_decoders_agree_on_every_syntax_and_depth(tmp_path, syntax, bits, signed):
    write_series(tmp_path, 2, syntax=syntax, bits=bits, signed=signed)
    plan = plan_studies(tmp_path)[0][0]
    frame = bytes(DicomPixels(plan).frame(plan.slices[0].header))
    assert decoders_agree(frame, plan.slices[0].header) is True
    assert check_decoders(DicomPixels(plan)) == []


def test_a_study_on_which_decoders_disagree_is_refused(tmp_path):
    write_series(tmp_path, 3, syntax=uid.JPEGLosslessSV1)
    ds = dataset(picture(), syntax=uid.JPEGLosslessSV1, z=100.0)
    ds.PixelData = encapsulate([frame_they_read_differently()])
    write(tmp_path / "1.dcm", ds)
    with pytest.raises(StudyRefused) as refused:
        open_study(plan_studies(tmp_path)[0][0])
    assert (refused.value.reason, refused.value.file, refused.value.study) == ("decoders_disagree", "1", STUDY)


def test_the_first_slice_of_each_kind_is_checked(tmp_path):
    for number, syntax in enumerate((uid.RLELossless, uid.JPEGLosslessSV1, uid.RLELossless), start=1):
        write_slice(tmp_path / f"{number}.dcm", z=100.0 - number, number=number, syntax=syntax)
    write_slice(tmp_path / "4.dcm", z=90.0, number=4, syntax=uid.RLELossless, bits=12, signed=False)
    write_slice(tmp_path / "5.dcm", z=89.0, number=5, syntax=uid.RLELossless, Manufacturer="ANOTHER")
    plan = plan_studies(tmp_path)[0][0]
    assert [place.file for place in first_of_each_kind(plan)] == [1, 2, 4, 5]


def test_a_slice_that_one_decoder_alone_can_read_is_flagged(tmp_path, monkeypatch):
    monkeypatch.setitem(PLUGINS, uid.JPEG2000Lossless, ("pylibjpeg",))
    decoder_names.cache_clear()
    try:
        write_series(tmp_path, 2, syntax=uid.JPEG2000Lossless)
        study, findings = open_study(plan_studies(tmp_path)[0][0])
    finally:
        decoder_names.cache_clear()
    assert study.record.flags == ("unchecked_decoding",) == tuple(finding.reason for finding in findings)


@pytest.mark.parametrize("signed_header", [False, True])
@pytest.mark.parametrize("signed_frame", [False, True])
def test_jpeg_2000_whose_sign_is_not_the_headers_is_read_alike_by_two_decoders(tmp_path, signed_header, signed_frame):
    hu = np.clip(picture(), 0, 1000)  # the same words, whatever sign they are told to have
    ds = dataset(hu, syntax=uid.JPEG2000Lossless, signed=True)
    stored = hu.astype(np.int16 if signed_frame else np.uint16)
    ds.PixelData, ds.PixelRepresentation = encapsulate([encode(stored, uid.JPEG2000Lossless, 16)]), int(signed_header)
    write(tmp_path / "1.dcm", ds)
    plan = plan_studies(tmp_path)[0][0]
    header, frame = plan.slices[0].header, encode(stored, uid.JPEG2000Lossless, 16)
    for name in ("pylibjpeg", "gdcm"):
        assert np.array_equal(decode_stored(frame, header, name), stored.view(np.uint16)), name
    assert check_decoders(DicomPixels(plan)) == []


def test_a_slice_of_one_single_value_is_suspect(tmp_path):
    write_series(tmp_path / "rsna", 12)
    write_slice(tmp_path / "rsna" / "4.dcm", np.full_like(picture(), -2000), z=94.0, number=4)
    write_slice(tmp_path / "rsna" / "9.dcm", np.full_like(picture(), 40), z=84.0, number=9)
    writer = CacheWriter(tmp_path / "cache")
    result = build_study(StudyTask(STUDY, plan_studies(tmp_path / "rsna")[0][0], None, writer.path, None, "", ""))
    writer.finish()
    assert writer.make_index()["flags"].tolist() == ["constant_slice"] and verify(tmp_path / "cache") == []
    (row,) = result.findings
    assert (row.id, row.severity, row.reason) == (STUDY, "flagged", "constant_slice") and row.reason in REASONS
    assert row.message.startswith("2 slices") and result.refused is None


def test_a_decoder_that_hangs_costs_its_task_and_never_the_run(tmp_path):
    mark = tmp_path / "tries"

    def task(name):
        with deadline(0.3):
            if name == "hangs":
                with open(mark, "a") as tries:
                    tries.write("x")
                sum(range(10**10))  # one call into C that holds the interpreter's lock all the while
            return name.upper()

    with Pool(1, None, lambda line: None) as pool:
        found = dict(pool.run(task, ["a", "hangs", "b"]))
    assert found[1] == Died("hung for 0.3 s in a process of its own and was ended (SIGALRM)")
    assert (found[0], found[2]) == ("A", "B") and mark.read_text() == "xx"


@pytest.mark.check
def test_workers_that_nobody_starts_again_are_replaced(monkeypatch):
    """As after one that died before its start was noticed."""
    monkeypatch.setattr("preprocess.build.dask_pool.RESPAWN_SECONDS", 1)
    with Pool(2, None, lambda line: None) as pool:
        assert dict(pool.run(str.upper, ["a"])) == {0: "A"}
        for nanny in list(pool._cluster.workers.values()):
            pool._client.sync(nanny.close)
        assert pool._threads() == 0
        assert dict(pool.run(str.upper, ["a", "b", "c"])) == {0: "A", 1: "B", 2: "C"}


def test_a_deadline_that_is_met_harms_nothing():
    with deadline(0.05), deadline(5.0):
        pass
    with deadline(5.0):
        with deadline(0.05):
            pass
        time.sleep(0.1)
    time.sleep(0.1)
