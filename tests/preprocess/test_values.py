"""Values that are not HU do not pass as HU: padding, other units, signs, bits that wrap, scans without air."""

import imagecodecs
import numpy as np
import pytest
from dicom_files import COLUMNS, ROWS, dataset, encode, expected_grey, grey, picture, plan_one, write, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from cache_schema.errors import StudyRefused
from preprocess import open_study
from preprocess.series.planning import plan_studies

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

OUTSIDE = np.hypot(*(np.mgrid[:ROWS, :COLUMNS] - np.array([ROWS / 2, COLUMNS / 2])[:, None, None])) > 11


def read(source):
    """(pixels, {flag: message}) of the one study there."""
    plans, findings = plan_studies(source)
    assert len(plans) == 1, findings
    study, about = open_study(plans[0])
    pixels = study.read(0, len(study.z))
    return pixels, {f.reason: f.message for f in [*findings, *about, *study.pixels.findings()]}


def padded(folder, hu, value, *, signed=False, limit=None, **fields):
    """Three slices whose corners hold `value` as it is stored."""
    for k in range(3):
        ds = dataset(hu, z=10.0 - k, number=k + 1, signed=signed, **fields)
        words = np.frombuffer(ds.PixelData, np.uint16).reshape(hu.shape).copy()
        words[OUTSIDE] = np.uint16(value & 0xFFFF)
        ds.PixelData = words.tobytes()
        vr = "SS" if signed else "US"
        ds.add_new(0x00280120, vr, value)
        if limit is not None:
            ds.add_new(0x00280121, vr, limit)
        write(folder / f"{k}.dcm", ds)
    return folder


@pytest.mark.parametrize(
    ("value", "signed"), [(65535, False), (63536, False), (-2000, True), (3000, True), (32767, True)]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_outside_of_the_window_is_air(tmp_path, value, signed, photometric):
    pixels, found = read(padded(tmp_path, picture(), value, signed=signed, PhotometricInterpretation=photometric))
    plain = expected_grey(picture()) if photometric == "MONOCHROME2" else 255 - expected_grey(picture())
    assert (pixels[:, OUTSIDE] == 0).all() and np.array_equal(pixels[0][~OUTSIDE], plain[~OUTSIDE])
    assert "padding_in_window" not in found


def test_the_range_limit_of_padding_counts_from_either_side(tmp_path):
    hu = picture()
    hu[~OUTSIDE] = 300
    hu[10, 10:14] = (1500, 1600, 1700, 1800)
    pixels, _ = read(padded(tmp_path, hu, 1024 + 1700, limit=1024 + 1500))
    assert pixels[0, 10, 10:14].tolist() == [0, 0, 0, 255]


def test_padding_that_means_tissue_is_air_only_where_it_reaches_the_edge(tmp_path):
    hu = np.full((ROWS, COLUMNS), -900, np.int16)
    hu[8:16, 10:22] = 40
    hu[11, 14:18] = 0  # water, as the padding's value says
    pixels, found = read(padded(tmp_path, hu, 0, signed=True))
    assert (pixels[:, OUTSIDE] == 0).all() and np.array_equal(pixels[0][~OUTSIDE], expected_grey(hu)[~OUTSIDE])
    assert "in 3 slices" in found["padding_in_window"]


@pytest.mark.parametrize("kind", ["Z_EFF", "US", "MGML", "PCT", "HU_MOD", "OD"])
def test_another_rescale_type_refuses_the_study(tmp_path, kind):
    assert plan_one(write_series(tmp_path, 3, RescaleType=kind)) == (None, {"not_hu": "refused"})


@pytest.mark.parametrize("kind", ["HU", " HU ", "", "hu"])
def test_hounsfield_units_may_be_named_or_left_out(tmp_path, kind):
    assert plan_one(write_series(tmp_path, 3, RescaleType=kind))[1] == {}


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"], False),
        (["DERIVED", "SECONDARY", "CBV"], False),
        (["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], True),
        (["CBV", "PRIMARY", "AXIAL"], True),
        (["ORIGINAL", "PRIMARY", "AXIAL", "HELIX", "CBV"], True),
    ],
)
def test_parametric_maps_are_told_by_the_third_and_fourth_word(tmp_path, words, kept):
    assert (plan_one(write_series(tmp_path, 3, ImageType=words))[0] is not None) == kept


def test_a_map_beside_the_volume_is_left_out(tmp_path):
    write_series(tmp_path / "ct", 6)
    write_series(tmp_path / "map", 6, series="2", SliceThickness="0.5", RescaleType="Z_EFF")
    plans, findings = plan_studies(tmp_path)
    assert len(plans[0].slices) == 6 and plans[0].series_uid.endswith(".1")
    assert [f.message for f in findings] == ["6 images: its values are not Hounsfield units"]


CODECS = {
    uid.JPEGLosslessSV1: lambda words, bits: imagecodecs.jpeg8_encode(
        words, lossless=True, predictor=1, bitspersample=bits
    ),
    uid.JPEGLSLossless: lambda words, bits: imagecodecs.jpegls_encode(words),
}


def compressed(folder, syntax, hu, *, header_bits, words_of):
    """Six signed slices; words_of: stored values -> what is handed to the encoder, and its bits."""
    for k in range(6):
        ds = dataset(hu[k], z=10.0 - k, number=k + 1, bits=header_bits)
        ds.file_meta.TransferSyntaxUID = syntax
        words, bits = words_of(k, hu[k])
        ds.PixelData, ds["PixelData"].VR = encapsulate([CODECS[syntax](np.ascontiguousarray(words), bits)]), "OB"
        write(folder / f"{k}.dcm", ds)
    return folder


def test_signed_values_in_a_frame_of_fewer_bits_are_refused(tmp_path):
    hu, syntax = np.stack([picture(k) for k in range(6)]), uid.JPEGLosslessSV1
    compressed(tmp_path, syntax, hu, header_bits=16, words_of=lambda k, values: (values.view(np.uint16) & 0xFFF, 12))
    plans, _ = plan_studies(tmp_path)
    study, _ = open_study(plans[0])
    with pytest.raises(StudyRefused, match="12 bits, its DICOM header 16") as refused:
        study.read(0, 6)
    assert refused.value.reason == "frame_precision"


def test_positive_values_in_a_frame_of_fewer_bits_are_read(tmp_path):
    hu, syntax = np.stack([np.abs(picture(k)) % 2000 for k in range(6)]), uid.JPEGLosslessSV1
    compressed(tmp_path, syntax, hu, header_bits=16, words_of=lambda k, values: (values.astype(np.uint16), 12))
    assert np.array_equal(read(tmp_path)[0], expected_grey(hu))


@pytest.mark.parametrize("syntax", CODECS)
def test_the_sign_of_an_8_bit_frame_is_not_its_bit_7(tmp_path, syntax):
    hu = np.stack([picture(k) for k in range(6)])
    hu[0] = hu[3] = np.clip(hu[3], 0, 255)
    hu[3, 5:9] = 200

    def words_of(k, values):
        small = k in (0, 3)
        return (values.astype(np.uint8), 8) if small else (values.view(np.uint16) & 0xFFF, 12)

    pixels, _ = read(compressed(tmp_path, syntax, hu, header_bits=12, words_of=words_of))
    assert np.array_equal(pixels, expected_grey(hu))


def test_bits_beyond_bits_stored_are_flagged_and_sign_bits_are_not(tmp_path):
    hu = picture()
    hu[3, 3] = 3500
    for name, bits, signed in (("wraps", 12, False), ("signed", 16, True)):
        for k in range(3):
            ds = dataset(hu, z=10.0 - k, number=k + 1, signed=signed)
            ds.BitsStored, ds.HighBit = (bits, bits - 1) if name == "wraps" else (13, 12)
            write(tmp_path / name / f"{k}.dcm", ds)
    assert "3 slices" in read(tmp_path / "wraps")[1]["bits_beyond_stored"]
    assert read(tmp_path / "signed")[1] == {}


def scan(folder, stored, **fields):
    """Six slices of stored values, unsigned, with an intercept of its own."""
    for k in range(6):
        ds = dataset(picture(k), z=10.0 - k, number=k + 1, signed=False, **fields)
        ds.PixelData = stored(picture(k).astype(int)).astype(np.uint16).tobytes()
        write(folder / f"{k}.dcm", ds)
    return folder


@pytest.mark.parametrize(
    ("stored", "fields", "words"),
    [
        (lambda hu: hu + 1024, {"RescaleIntercept": "0"}, "there is no air"),
        (
            lambda hu: hu % 4096,
            {"RescaleIntercept": "0", "BitsStored": 12, "HighBit": 11},
            "top of the intensity window",
        ),
        (lambda hu: np.where(hu < -600, 63536, hu + 1024), {}, "above 2500 HU"),
    ],
)
def test_values_that_are_hardly_hu_are_flagged(tmp_path, stored, fields, words):
    assert words in read(scan(tmp_path, stored, **fields))[1]["hu_implausible"]


def test_a_plain_scan_is_plausible(tmp_path):
    assert "hu_implausible" not in read(write_series(tmp_path, 4))[1]


@pytest.mark.parametrize("text", ["1_0", "1,0", "inf", "0x1", "1.0d0", "１"])
def test_decimal_strings_are_read_as_dicom_defines_them(tmp_path, text):
    path = write(tmp_path / "1.dcm", dataset(picture(), RescaleIntercept="-98765"))
    raw = text.encode("utf-8").ljust(6)[:6]
    path.write_bytes(path.read_bytes().replace(b"-98765", raw))
    assert plan_one(tmp_path) == (None, {"invalid_field": "refused"})


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_big_endian_files_are_read(tmp_path, bits, vr):
    stored = (np.arange(ROWS * COLUMNS) % 251).astype(np.uint8).reshape(ROWS, COLUMNS)
    hu = picture() if bits == 16 else (stored * 7.0 - 600).astype(np.int16)
    if bits == 16 and vr == "OB":
        pytest.skip("16-bit samples are words (DICOM PS3.5 8.1.1)")
    for k in range(2):
        fields = {"z": 10.0 - k, "number": k + 1, "syntax": uid.ExplicitVRBigEndian}
        if bits == 8:
            fields |= dict(BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope="7", RescaleIntercept="-600")
        ds = dataset(hu, signed=bits == 16, **fields)
        if bits == 8:
            ds.PixelData = stored.tobytes() if vr == "OB" else stored.ravel().reshape(-1, 2)[:, ::-1].tobytes()
        ds["PixelData"].VR = vr
        write(tmp_path / f"{k}.dcm", ds)
    pixels, _ = read(tmp_path)
    assert np.array_equal(pixels[0], expected_grey(hu))


@pytest.mark.parametrize("pad", [b"\xff", b" ", b"\0", b"\0\0\0\0"])
@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_what_follows_the_end_of_an_image_as_padding_is_no_cut(tmp_path, syntax, pad):
    for k in range(2):
        ds = dataset(picture(k), z=10.0 - k, number=k + 1, syntax=syntax)
        frame = encode(picture(k), syntax, 16)
        ds.PixelData = encapsulate([frame + pad * (1 + len(frame + pad) % 2 if len(pad) == 1 else 1)])
        write(tmp_path / f"{k}.dcm", ds)
    assert np.array_equal(read(tmp_path)[0][0], expected_grey(picture(0)))


def test_an_offset_table_that_swaps_frames_is_refused(tmp_path):
    frames = [encode(picture(z), uid.JPEGLosslessSV1, 16) for z in range(3)]
    ds = dataset(picture(), syntax=uid.JPEGLosslessSV1, NumberOfFrames="3")
    ds.PerFrameFunctionalGroupsSequence = []
    for z in range(3):
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [-8, -6, 50 - 2 * z]
        group.PlanePositionSequence = [plane]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    whole = encapsulate(frames)
    starts = np.frombuffer(whole[8:20], "<u4")
    ds.PixelData = whole[:8] + starts[[0, 2, 1]].tobytes() + whole[20:]
    write(tmp_path / "1.dcm", ds)
    plans, _ = plan_studies(tmp_path)
    with pytest.raises(StudyRefused, match="offset table") as refused:
        open_study(plans[0])
    assert refused.value.reason == "offset_table"


def test_an_offset_table_of_a_single_frame_does_not_matter(tmp_path):
    frame = encode(picture(), uid.JPEGLosslessSV1, 16)
    for k in range(2):
        ds = dataset(picture(), z=10.0 - k, number=k + 1, syntax=uid.JPEGLosslessSV1)
        pieces = encapsulate([frame], fragments_per_frame=3)
        ds.PixelData = b"\xfe\xff\x00\xe0\x04\0\0\0\x08\0\0\0" + pieces[12:]
        write(tmp_path / f"{k}.dcm", ds)
    assert np.array_equal(read(tmp_path)[0][0], expected_grey(picture()))


def test_a_single_value_is_read_though_one_grey_slice_is_all_there_is(tmp_path):
    write_series(tmp_path, 1)
    assert np.array_equal(grey(plan_one(tmp_path)[0])[0], expected_grey(picture(0)))
