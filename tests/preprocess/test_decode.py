"""Pixels: every syntax and depth gives the same exact grey values, and what cannot be trusted is refused before it is
decoded."""

import pickle
import random
import time

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import (
    COLUMNS,
    ROWS,
    STUDY,
    dataset,
    dataset_of_frames,
    encode,
    expected_grey,
    picture,
    volume,
    write,
    write_series,
    write_slice,
)
from pydicom import uid
from pydicom.encaps import encapsulate

from cache_schema.errors import StudyRefused
from preprocess import open_study, studies
from preprocess.decoders import PLUGINS, decoder_names
from preprocess.findings import REASONS
from preprocess.pixels.decode import decode_stored
from preprocess.pixels.grey_tables import window_table
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SYNTAXES = [
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.JPEGLosslessSV1, uid.JPEGLossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless),
]


def only_plan(source):
    plans, findings = plan_studies(source)
    assert len(plans) == 1, findings
    return plans[0]


def read_all(source):
    plan = only_plan(source)
    return DicomPixels(plan).read(0, len(plan.slices))


@pytest.mark.parametrize("slope, intercept", [(1.0, 0.0), (1.0, -1024.0), (2.5, -31.25), (-1.0, 300.0), (0.001, 0.0)])
@pytest.mark.parametrize("bits, signed", [(16, 0), (16, 1), (12, 0), (12, 1), (8, 0), (1, 0)])
def test_the_table_is_exact_for_every_word(slope, intercept, bits, signed):
    table = window_table(slope, intercept, signed, bits, "MONOCHROME2")
    for word in [*range(0, 65536, 97), 0, 2**bits - 1, 2 ** (bits - 1), 65535]:
        stored = word % 2**bits
        if signed and stored >= 2 ** (bits - 1):
            stored -= 2**bits
        hu = min(max(stored * slope + intercept, -500.0), 1300.0)
        assert table[word] == round((hu + 500.0) * 255 / 1800), word  # Python rounds halves to even, as the table must


def test_halves_go_to_the_even_number():
    table = window_table(1.0, -500.0, 0, 16, "MONOCHROME2")
    assert (table[60], table[180]) == (8, 26)  # 8.5 and 25.5
    assert (table[0], table[1800], table[65535]) == (0, 255, 255)


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    write_series(tmp_path, 3, PhotometricInterpretation="MONOCHROME1")
    plan = only_plan(tmp_path)
    assert plan.flags == ("monochrome1",)
    assert np.array_equal(DicomPixels(plan).read(0, 3), 255 - expected_grey(volume(3)))


@pytest.mark.parametrize("bits, signed", [(12, False), (16, True), (16, False)])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_syntax_and_depth_gives_the_same_pixels(tmp_path, syntax, bits, signed):
    write_series(tmp_path, 3, syntax=syntax, bits=bits, signed=signed)
    plan = only_plan(tmp_path)
    pixels = DicomPixels(plan)
    assert np.array_equal(pixels.read(0, 3), expected_grey(volume(3)))
    assert plan.transfer_syntax == syntax and pixels.decoder == decoder_names(syntax)[0]


def test_jpeg_lossless_goes_through_turbo_then_gdcm_then_pylibjpeg_and_all_agree(tmp_path):
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        assert decoder_names(syntax) == ("turbo", "gdcm", "pylibjpeg")
        write_slice(tmp_path / f"{syntax}.dcm", syntax=syntax, series=syntax[-2:])
        header = plan_studies(tmp_path / f"{syntax}.dcm")[0][0].slices[0].header
        frame = encode(picture(), syntax, 16)
        for name in decoder_names(syntax):
            assert np.array_equal(decode_stored(frame, header, name).view(np.int16), picture()), name


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1])
def test_12_bit_signed_values_are_sign_extended(tmp_path, syntax):
    write_series(tmp_path, 2, syntax=syntax, bits=12, signed=True)
    assert np.array_equal(read_all(tmp_path), expected_grey(volume(2)))


def test_rubbish_in_unused_bits_does_not_matter(tmp_path):
    ds = dataset(picture(), bits=12, signed=False)
    words = np.frombuffer(ds.PixelData, np.uint16) | (np.arange(ROWS * COLUMNS) % 16 << 12).astype(np.uint16)
    ds.PixelData = words.tobytes()
    write(tmp_path / "1.dcm", ds)
    assert np.array_equal(read_all(tmp_path)[0], expected_grey(picture()))


def test_8_bit_slices_and_fractional_rescaling(tmp_path):
    stored = (np.arange(ROWS * COLUMNS) % 251).astype(np.uint8).reshape(ROWS, COLUMNS)
    fields = dict(BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope="7.25", RescaleIntercept="-600")
    ds = dataset(picture(), signed=False, **fields)
    ds.PixelData = stored.tobytes()
    write(tmp_path / "1.dcm", ds)
    assert np.array_equal(read_all(tmp_path)[0], expected_grey(stored * 7.25 - 600))


def test_rescaling_may_differ_from_slice_to_slice(tmp_path):
    write_slice(tmp_path / "1.dcm", picture(), z=4, number=1)
    write_slice(tmp_path / "2.dcm", picture(), z=2, number=2, RescaleSlope="0.5", RescaleIntercept="10")
    assert np.array_equal(read_all(tmp_path)[1], expected_grey(picture() * 0.5 + 10))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.RLELossless])
def test_the_frames_of_one_file_are_slices(tmp_path, syntax):
    frames = [encode(picture(k), syntax, 16) for k in range(5)]
    write(tmp_path / "1.dcm", dataset_of_frames(frames, picture(), syntax, (3, 0, 4, 1, 2)))
    plan = only_plan(tmp_path)
    assert plan.flags == ("file_order", "multi_frame") and plan.slice_number.tolist() == [2, 4, 5, 1, 3]
    assert np.array_equal(DicomPixels(plan).read(0, 5), expected_grey(np.stack([picture(k) for k in (1, 3, 4, 0, 2)])))
    assert len(plan.files) == 1


def test_only_the_slices_asked_for_are_read(tmp_path):
    write_series(tmp_path, 5, syntax=uid.JPEGLosslessSV1)
    pixels = pickle.loads(pickle.dumps(DicomPixels(only_plan(tmp_path))))
    for name in (1, 2, 5):
        (tmp_path / f"{name}.dcm").unlink()
    assert np.array_equal(pixels.read(2, 4), expected_grey(volume(5))[2:4])
    with pytest.raises(StudyRefused) as refused:
        pixels.read(0, 5)
    assert (refused.value.reason, refused.value.study, refused.value.file) == ("source_changed", STUDY, "1")


def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path):
    write_series(tmp_path, 3)
    pixels = DicomPixels(only_plan(tmp_path))
    write_slice(tmp_path / "2.dcm", picture(9), z=98, number=2, kernel="another")
    assert pixels.read(0, 1).shape == (1, ROWS, COLUMNS)
    for attempt in (lambda: pixels.read(0, 3), pixels.source_digest):
        with pytest.raises(StudyRefused) as refused:
            attempt()
        assert (refused.value.reason, refused.value.file) == ("source_changed", "2")


def test_the_source_digest_is_of_the_bytes_only(tmp_path):
    write_series(tmp_path / "a", 4)
    write_series(tmp_path / "b" / "deeper", 4)
    read, unread, partly = (DicomPixels(only_plan(tmp_path / name)) for name in ("a", "b", "b"))
    read.read(0, 4)
    partly.read(1, 3)
    assert read.source_digest() == unread.source_digest() == partly.source_digest()
    write_slice(tmp_path / "b" / "deeper" / "2.dcm", picture(1), z=98.0, number=2, PatientName="ANOTHER^ONE")
    assert DicomPixels(only_plan(tmp_path / "b")).source_digest() != read.source_digest()
    settled = open_study(only_plan(tmp_path / "a"))[0].record_after_reading()
    assert (settled.source_digest, settled.decoder) == (read.source_digest(), "pydicom")


def with_frame(tmp_path, frame, syntax=uid.JPEGLosslessSV1, **fields):
    ds = dataset(picture(), syntax=syntax, **fields)
    ds.PixelData = encapsulate([frame])
    write(tmp_path / "1.dcm", ds)
    return DicomPixels(only_plan(tmp_path))


def reason_of(pixels):
    with pytest.raises(StudyRefused) as refused:
        pixels.read(0, 1)
    assert refused.value.reason in REASONS and refused.value.file == "1"
    return refused.value.reason


def with_shape(frame, rows, columns):
    """The same JPEG with another size in its start-of-frame segment."""
    at = frame.index(b"\xff\xc3") + 5
    return frame[:at] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + frame[at + 4 :]


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEGLSLossless])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.97])
def test_a_frame_that_was_cut_is_refused(tmp_path, syntax, share):
    frame = encode(picture(), syntax, 16)
    assert reason_of(with_frame(tmp_path, frame[: int(share * len(frame))], syntax)) == "truncated_frame"


def test_padding_after_the_end_of_the_image_is_no_cut(tmp_path):
    frame = encode(picture(), uid.JPEGLosslessSV1, 16)
    for padding in (1, 2, 17):
        pixels = with_frame(tmp_path, frame + b"\0" * padding)
        assert np.array_equal(pixels.read(0, 1)[0], expected_grey(picture()))


@pytest.mark.parametrize(
    "rows, columns", [(30000, 30000), (2 * ROWS, COLUMNS), (COLUMNS, ROWS), (ROWS, COLUMNS - 1), (0, 0)]
)
def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_decoded(tmp_path, rows, columns):
    frame = with_shape(encode(picture(), uid.JPEGLosslessSV1, 16), rows, columns)
    pixels = with_frame(tmp_path, frame)
    begin = time.process_time()
    assert reason_of(pixels) == "frame_size"
    assert time.process_time() - begin < 0.5


def test_a_jpeg_2000_frame_that_lies_about_its_size_is_refused(tmp_path):
    frame = encode(picture(), uid.JPEG2000Lossless, 16)
    assert (
        reason_of(with_frame(tmp_path, frame[:8] + b"\0\0\x75\x30" + frame[12:], uid.JPEG2000Lossless)) == "frame_size"
    )


def test_colour_in_a_grey_header_is_refused(tmp_path):
    colour = imagecodecs.jpeg8_encode(np.zeros((ROWS, COLUMNS, 3), np.uint8), lossless=True, predictor=1)
    assert reason_of(with_frame(tmp_path, colour)) == "frame_size"


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless])
@pytest.mark.parametrize(
    "frame",
    [b"\0\0", b"\xff\xd8", b"\xff\xd8\xff\xff\xff\xff", b"\xff\x4f\xff\x51\0\0", b"plain text, long enough" * 9],
)
def test_a_frame_of_another_kind_is_refused(tmp_path, syntax, frame):
    assert reason_of(with_frame(tmp_path, frame, syntax)) == "frame_header"


def test_a_baseline_jpeg_is_no_lossless_one(tmp_path):
    baseline = imagecodecs.jpeg8_encode(np.zeros((ROWS, COLUMNS), np.uint8))
    assert reason_of(with_frame(tmp_path, baseline)) == "frame_header"


def test_rle_frames_are_guarded_too(tmp_path):
    frame = encode(picture(), uid.RLELossless, 16)
    assert reason_of(with_frame(tmp_path, frame[:70], uid.RLELossless)) == "truncated_frame"
    assert reason_of(with_frame(tmp_path, b"\x03" + frame[1:], uid.RLELossless)) == "frame_header"


def test_a_cut_file_of_one_compressed_frame_is_refused(tmp_path):
    content = write_slice(tmp_path / "1.dcm", syntax=uid.JPEGLosslessSV1).read_bytes()
    (tmp_path / "1.dcm").write_bytes(content[:-200])
    assert reason_of(DicomPixels(only_plan(tmp_path))) == "truncated_frame"


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.RLELossless])
def test_mutated_files_are_kept_or_refused_with_a_reason(tmp_path, syntax):
    whole = write_slice(tmp_path / "1.dcm", syntax=syntax).read_bytes()
    rng = random.Random(7)
    kept = 0
    for _ in range(120):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(128, len(content))] = rng.randrange(256)
        (tmp_path / "1.dcm").write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        plans, findings = plan_studies(tmp_path)
        assert plans or findings
        for plan in plans:
            try:
                assert DicomPixels(plan).read(0, 1).shape == (1, plan.rows, plan.columns)
                kept += 1
            except StudyRefused as refused:
                assert refused.reason in REASONS
    assert kept > 5


def test_bytes_damaged_in_silence_are_seen_beside_their_neighbours(tmp_path):
    """No decoder complains of them, and DICOM has no checksum."""
    write_series(tmp_path, 9, syntax=uid.JPEGLosslessSV1)
    whole = encode(picture(4), uid.JPEGLosslessSV1, 16)
    ds = dataset(picture(), syntax=uid.JPEGLosslessSV1, z=92.0, number=5)
    ds.PixelData = encapsulate([whole[:250] + whole[290:]])
    write(tmp_path / "5.dcm", ds)
    pixels = DicomPixels(only_plan(tmp_path))
    assert (pixels.read(0, 9)[4] != expected_grey(picture(4))).mean() > 0.3
    assert [(f.reason, f.file) for f in pixels.findings()] == [("slice_jump", "5")] and pixels.flags() == (
        "slice_jump",
    )


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless])
def test_without_any_decoder_a_study_is_refused_before_it_is_read(tmp_path, syntax, monkeypatch):
    monkeypatch.setitem(PLUGINS, syntax, ("not_installed",))
    decoder_names.cache_clear()
    try:
        write_series(tmp_path, 2, syntax=syntax)
        plans, findings = plan_studies(tmp_path)
    finally:
        decoder_names.cache_clear()
    assert plans == [] and {finding.reason for finding in findings} == {"unsupported_syntax"}


def test_messages_name_no_file_and_no_patient(tmp_path):
    frame = encode(picture(), uid.JPEGLosslessSV1, 16)
    with pytest.raises(StudyRefused) as refused:
        with_frame(tmp_path / "SECRET", frame[:100]).read(0, 1)
    assert "SECRET" not in f"{refused.value}{refused.value.__dict__}"


def test_an_opened_study_is_lazy_picklable_and_knows_itself(tmp_path):
    write_series(tmp_path, 9, syntax=uid.JPEGLosslessSV1)
    study, findings = open_study(only_plan(tmp_path))
    assert findings == [] and study.record.decoder == "turbo" and study.record.source_digest == ""
    again = pickle.loads(pickle.dumps(study))
    assert np.array_equal(again.read(3, 7, (1, 2, 20, 11)), expected_grey(volume(9))[3:7, 2:11, 1:20])
    expected = expected_grey(volume(9)).reshape(9, -1)
    assert np.array_equal(study.value_range, np.stack([expected.min(1), expected.max(1)], 1))


def test_studies_yields_what_is_good_and_reports_the_rest(tmp_path):
    write_series(tmp_path / "a", 3)
    write_series(tmp_path / "b", 3, study="1.2.3")
    write_series(tmp_path / "c", 3, study="1.2.4", remove=("PixelSpacing",))
    findings = []
    assert [study.id for study in studies(tmp_path, report=findings.append)] == ["1.2.3", STUDY]
    assert {(f.id, f.reason) for f in findings} == {("1.2.4", "missing_field")}
    assert len(list(studies(tmp_path))) == 2


def test_the_decoders_read_what_pydicom_reads(tmp_path):
    path = write_slice(tmp_path / "1.dcm", syntax=uid.JPEGLosslessSV1, bits=12, signed=False)
    stored = pydicom.pixels.pixel_array(path, decoding_plugin="pylibjpeg")
    assert np.array_equal(read_all(tmp_path)[0], expected_grey(stored.astype(float) - 1024))
