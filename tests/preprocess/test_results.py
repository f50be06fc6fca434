"""Key slices and a report as DICOM: filed under their study, the same every time, and readable by others."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import COLUMNS, ROWS, dataset, picture, plan_one, volume, write, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cache_schema.errors import StudyRefused, UsageError
from cache_schema.layout import LEVELS, TARGETS
from preprocess.phantom.generate import write_phantom
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.results.report import ASSESSMENT, CALIBRATED, NETWORK, PROBABILITY, SITES
from preprocess.results.write import KeySlice, write_results

NAME, PLANTED = "MÜLLER^JÖRG", "ZAPHODBEEBLE"
FILED = {
    **{"PatientName": NAME, "PatientID": "MRN-77", "PatientBirthDate": "19570304", "PatientSex": "M"},
    **{"StudyDate": "20240102", "StudyTime": "101530.25", "AccessionNumber": "A-1", "StudyID": "S-1"},
    **{"ReferringPhysicianName": "GÖTZ^EVA", "StudyDescription": "Halswirbelsäule", "IssuerOfPatientID": "HOSPITAL"},
}
PROBABILITIES = {
    "patient_overall": 0.93,
    **dict(zip(LEVELS, [0.871234567, 0.0, 0.25, 1.0, 0.5, 1e-7, None], strict=True)),
}
BETTER = {"patient_overall": 0.7, "C1": 0.6}
NOTES = (
    "C7 is cut off by the field of view.",
    "The values differ from those of the training data: 3 standard deviations.",
)
MODELS = "ab" * 32


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """A phantom with a patient's attributes, in Latin 1, and private elements."""
    root = tmp_path_factory.mktemp("scan")
    write_phantom(root, studies=1, slices=48, segmented=0, syntax="explicit", workers=1, progress=False)
    for path in root.rglob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 100"
        for keyword, value in FILED.items():
            setattr(ds, keyword, value)
        ds.private_block(0x0011, PLANTED, create=True).add_new(1, "LO", PLANTED)
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99LOCAL", "CT neck"
        code.private_block(0x0011, PLANTED, create=True).add_new(1, "LO", PLANTED)
        ds.ProcedureCodeSequence = [code]
        ds.save_as(path)
    return root


def grey_slices(plan, *places: tuple[str, int]) -> list[KeySlice]:
    """A red stripe in place of a heat map."""
    chosen = []
    for level, z in places:
        image = np.repeat(DicomPixels(plan).read(z, z + 1)[0][..., None], 3, axis=-1)
        image[plan.rows // 2, :, 0] = 255
        chosen.append(KeySlice(level, z, 0.87, image))
    return chosen


def results_of(source: Path, out: Path, *places: tuple[str, int]) -> list[Path]:
    plan, _ = plan_one(source)
    return write_results(plan, grey_slices(plan, *places), PROBABILITIES, BETTER, NOTES, MODELS, out)


@pytest.fixture(scope="module")
def made(scan, tmp_path_factory) -> list[Path]:
    return results_of(scan, tmp_path_factory.mktemp("results") / "out", ("C1", 9), ("C5", 30), ("C5", 31))


def source_of(scan: Path, z: int) -> Dataset:
    plan, _ = plan_one(scan)
    return pydicom.dcmread(plan.slices[z].path)


def test_an_archive_files_them_with_their_study(scan, made):
    assert [path.relative_to(made[-1].parent).as_posix() for path in made] == [
        *("SC/0001.dcm", "SC/0002.dcm", "SC/0003.dcm"),
        "SR.dcm",
    ]
    source = source_of(scan, 9)
    for path in made:
        ds = pydicom.dcmread(path)
        assert {keyword: str(ds[keyword].value) for keyword in FILED} == FILED
        assert NAME.encode("latin-1") in path.read_bytes()
        assert (ds.StudyInstanceUID, ds.SpecificCharacterSet) == (source.StudyInstanceUID, "ISO_IR 100")
        assert ds.ProcedureCodeSequence[0].CodeMeaning == "CT neck"
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID and ds.Manufacturer == "cspine"


def test_private_elements_of_the_source_stay_behind(made):
    for path in made:
        assert PLANTED.encode() not in path.read_bytes()
        assert not [element for element in pydicom.dcmread(path).iterall() if element.tag.is_private]


def test_the_same_results_are_the_same_bytes_and_other_results_have_other_uids(scan, made, tmp_path):
    before = [path.read_bytes() for path in made]
    again = results_of(scan, tmp_path, ("C1", 9), ("C5", 30), ("C5", 31))
    assert [path.read_bytes() for path in again] == before
    fewer = results_of(scan, tmp_path, ("C1", 9), ("C5", 30))
    assert sorted(tmp_path.rglob("*.dcm")) == sorted(fewer)
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in made}
    assert len(uids) == 4 and all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", each) for each in uids)
    assert not uids & {str(pydicom.dcmread(path).SOPInstanceUID) for path in fewer}


def test_no_clock_is_in_them_but_the_study_s(made):
    for path in made:
        dates = {str(e.value) for e in pydicom.dcmread(path).iterall() if e.VR in ("DA", "TM", "DT")}
        assert dates == {FILED["StudyDate"], FILED["StudyTime"], FILED["PatientBirthDate"]}


def test_words_are_burnt_in_and_the_rest_of_the_slice_is_untouched(scan, made):
    plan, _ = plan_one(scan)
    ds, (given,) = pydicom.dcmread(made[0]), grey_slices(plan, ("C1", 9))
    changed = (ds.pixel_array != given.image).any(axis=-1)
    above, below = changed[: plan.rows // 8], changed[-plan.rows // 8 :]
    assert above.sum() > 300 and below.sum() > 300 and changed.sum() == above.sum() + below.sum()
    assert (ds.BurnedInAnnotation, list(ds.ImageType), ds.ConversionType) == ("YES", ["DERIVED", "SECONDARY"], "WSD")
    assert ds.ImageComments == f"C1  slice {plan.slices[9].slice_number}  fracture 0.87; not for diagnosis"


def test_a_key_slice_lies_where_its_source_does(scan, made):
    source, ds = source_of(scan, 9), pydicom.dcmread(made[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        assert np.allclose(ds[keyword].value, source[keyword].value, atol=1e-6)
    assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
    reference = ds.SourceImageSequence[0]
    assert (reference.ReferencedSOPInstanceUID, "ReferencedFrameNumber" in reference) == (source.SOPInstanceUID, False)


def test_the_report_reads_back_to_the_probabilities(scan, made):
    report = highdicom.sr.srread(made[-1]).content
    groups = {group.tracking_identifier: group for group in report.get_image_measurement_groups()}
    assert tuple(groups) == TARGETS
    for target, group in groups.items():
        assert [site.value for site in group.finding_sites] == [SITES[target]]
        values = {m.method.value: (m.name, m.value, m.unit) for m in group.get_measurements()}
        expected = {NETWORK.value: PROBABILITIES[target], CALIBRATED.value: BETTER.get(target)}
        assert values == {
            method: (PROBABILITY, round(value, 6), codes.UCUM.NoUnits)
            for method, value in expected.items()
            if value is not None
        }
        said = [(each.name, each.value) for each in group.get_qualitative_evaluations()]
        assert said == ([(ASSESSMENT, codes.SCT.NotEvaluated)] if PROBABILITIES[target] is None else [])
    sources = {level: [image.referenced_sop_instance_uid for image in groups[level].source_images] for level in LEVELS}
    expected_sources = {"C1": [9], "C5": [30, 31]}
    assert sources == {
        level: [source_of(scan, z).SOPInstanceUID for z in expected_sources.get(level, [])] for level in LEVELS
    }


def test_the_report_says_what_it_is_who_made_it_and_every_note(made):
    ds = highdicom.sr.srread(made[-1])
    comments = [item.TextValue for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121106"]
    assert comments == ["Not for diagnosis. Research only, not a medical device.", *NOTES]
    assert (ds.VerificationFlag, ds.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    (observer,) = ds.content.get_observer_contexts()
    assert observer.observer_identifying_attributes.name == "cspine"
    assert (ds.ContentDate, ds.ContentTime) == (FILED["StudyDate"], FILED["StudyTime"])


def test_every_frame_of_an_enhanced_file_is_named_by_its_number(tmp_path):
    ds = dataset(
        volume(6), SOPClassUID=uid.EnhancedCTImageStorage, NumberOfFrames="6", remove=("ImagePositionPatient",)
    )
    ds.file_meta.MediaStorageSOPClassUID = uid.EnhancedCTImageStorage
    ds.PerFrameFunctionalGroupsSequence = []
    for z in (0, 10, 2, 8, 4, 6):  # frames need not be in order
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [-8, -6, 50 - z]
        group.PlanePositionSequence = [plane]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    write(tmp_path / "in/1.dcm", ds)
    captured, report = results_of(tmp_path / "in", tmp_path / "out", ("C3", 2))
    reference = pydicom.dcmread(captured).SourceImageSequence[0]
    assert (reference.ReferencedSOPClassUID, reference.ReferencedFrameNumber) == (uid.EnhancedCTImageStorage, 5)
    groups = highdicom.sr.srread(report).content.get_image_measurement_groups()
    (image,) = next(group for group in groups if group.tracking_identifier == "C3").source_images
    assert image.referenced_frame_numbers == [5]


def test_a_turned_image_is_placed_by_its_own_axes(tmp_path):
    """Stored with rows to the right and columns to the front: turned by half a circle."""
    write_series(tmp_path / "in", ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], FrameOfReferenceUID="1.2.3")
    ds = pydicom.dcmread(results_of(tmp_path / "in", tmp_path / "out", ("C1", 1))[0])
    assert list(ds.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    first = [-8 - 0.5 * (COLUMNS - 1), -6 - 0.5 * (ROWS - 1), 98]
    assert np.allclose(ds.ImagePositionPatient, first)
    assert "SpatialLocationsPreserved" not in ds.SourceImageSequence[0]


def test_results_beside_their_source_change_nothing_when_it_is_read_again(tmp_path):
    write_series(tmp_path, StudyDate="20240102")
    before, _ = plan_one(tmp_path)
    results_of(tmp_path, tmp_path / "results", ("C1", 1))
    after, told = plan_one(tmp_path)
    assert after == before and set(told) == {"not_ct"}


def test_a_study_without_dates_names_or_key_slices_is_written_too(tmp_path):
    write_series(tmp_path / "in", remove=("PatientName",))
    (path,) = results_of(tmp_path / "in", tmp_path / "out")
    ds = pydicom.dcmread(path)
    assert (ds.PatientName, ds.PatientSex, ds.StudyDate) == ("", "", "")
    assert (ds.ContentDate, ds.ContentTime) == ("19000101", "000000")
    assert len(highdicom.sr.srread(path).get_evidence()) == 1


def test_values_that_break_the_standard_go_along_as_they_are(tmp_path):
    odd = {"PatientSex": "MALE?", "PatientBirthDate": "4 March 57", "StudyTime": "ten", "StudyDate": "20240102"}
    write_series(tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        ds = pydicom.dcmread(path)
        for keyword, value in odd.items():
            ds.add(pydicom.DataElement(keyword, "LO", value))
            ds[keyword].VR = pydicom.datadict.dictionary_VR(keyword)
        ds.save_as(path)
    for path in results_of(tmp_path / "in", tmp_path / "out", ("C1", 1)):
        ds = pydicom.dcmread(path)
        assert {keyword: str(ds.get_item(keyword).value.decode()).strip() for keyword in odd} == odd
    assert (ds.ContentDate, ds.ContentTime) == ("20240102", "000000")


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20240231", "10", ("19000101", "000000")),
        ("99999999", "10", ("19000101", "000000")),
        ("20240201", "996199", ("20240201", "000000")),
        ("20240201", "10", ("20240201", "10")),
    ],
)
def test_a_moment_that_never_was_is_no_moment(date, time, expected, tmp_path):
    write_series(tmp_path / "in", StudyDate=date, StudyTime=time)
    (path,) = results_of(tmp_path / "in", tmp_path / "out")
    ds = pydicom.dcmread(path)
    assert (ds.ContentDate, ds.ContentTime) == expected


def test_a_file_that_changed_is_refused_and_its_name_is_not_told(tmp_path):
    write_series(tmp_path / "in")
    plan, _ = plan_one(tmp_path / "in")
    chosen = grey_slices(plan, ("C1", 2))
    write(Path(plan.slices[2].path), dataset(picture(2), number=3, z=96.0, PatientName="OTHER^NAME"))
    with pytest.raises(StudyRefused, match="changed after its header was read") as refused:
        write_results(plan, chosen, PROBABILITIES, None, (), MODELS, tmp_path / "out")
    assert refused.value.reason == "source_changed" and not (tmp_path / "out").exists()


def test_images_of_another_patient_are_refused(tmp_path):
    write_series(tmp_path / "in", PatientID="1")
    path = tmp_path / "in/3.dcm"
    write(path, dataset(picture(2), number=3, z=96.0, PatientID="2"))
    with pytest.raises(StudyRefused, match="different PatientIDs"):
        results_of(tmp_path / "in", tmp_path / "out", ("C1", 2))


@pytest.mark.parametrize("change", [{"level": "C8"}, {"z_index": 5}, {"fracture": 1.5}, {"image": np.zeros((2, 2, 3))}])
def test_a_key_slice_that_is_none_raises(change, tmp_path):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    (each,) = grey_slices(plan, ("C1", 1))
    with pytest.raises(ValueError, match=r"no key slice|an image of"):
        write_results(plan, [each._replace(**change)], PROBABILITIES, None, (), MODELS, tmp_path / "out")
    with pytest.raises(ValueError, match="no probability"):
        write_results(plan, [each], {"C1": 1.5}, None, (), MODELS, tmp_path / "out")


def test_without_highdicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    monkeypatch.setitem(sys.modules, "highdicom", None)  # as if it were not there
    with pytest.raises(UsageError) as error:
        write_results(plan, [], PROBABILITIES, None, (), MODELS, tmp_path / "out")
    assert str(error.value) == "DICOM results need highdicom; install cspine[dicom]"


@pytest.mark.check
@pytest.mark.parametrize("kind", ["phantom", "without attributes"])
def test_dciodvfy_finds_no_error_and_dsrdump_reads_the_report(kind, made, tmp_path):
    verify, dump = shutil.which("dciodvfy"), shutil.which("dsrdump")
    if verify is None or dump is None:
        pytest.skip(
            "needs dciodvfy (dicom3tools) and dsrdump (dcmtk); make check installs them as root where there is apt"
        )
    files = made if kind == "phantom" else results_of(write_series(tmp_path / "in"), tmp_path / "out", ("C2", 1))
    for path in files:
        done = subprocess.run([verify, "-new", path], capture_output=True, check=False)
        said = (done.stdout + done.stderr).decode("latin-1").splitlines()
        assert done.returncode == 0 and not [line for line in said if line.startswith("Error")], said
    done = subprocess.run([dump, "+Pl", files[-1]], capture_output=True, check=False)
    text = done.stdout.decode("latin-1")
    assert done.returncode == 0 and b"E: " not in done.stderr, done.stderr
    assert text.count("Probability of fracture") == 9 and "not a medical device" in text
