"""Names, dates, ids and places planted wherever a source can hold text are found nowhere in cache, report or log."""

import json
import shutil
import subprocess
import sys
import time
from functools import cache

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_files import dataset, picture, write, write_nifti
from pydicom import config, datadict
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from tiny_rsna import HEIGHTS, SLICES, hu_of, labels_of

from cache_schema import Cache
from cache_schema.verify import verify
from preprocess.cli import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SECRETS = ("zaphodbeeble", "19570304", "mrn77012", "saintelsewhere")
PLANTED = "ZAPHODBEEBLE^19570304 MRN77012 SaintElsewhere"
TEXT_VRS = ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
STUDY = "1.2.826.0.1.3680043.8.498.5"
KEPT = {"ImageType", "Modality", "PhotometricInterpretation", "RescaleType", "SpecificCharacterSet"}
"""text that decides about a study; planted in studies of their own below"""


@cache
def text_elements() -> Dataset:
    """The secrets in every text element of DICOM's dictionary."""
    ds = Dataset()
    for tag, (vr, _, _, retired, keyword) in datadict.DicomDictionary.items():
        if vr in TEXT_VRS and not retired and keyword and tag >> 16 > 2 and keyword not in KEPT:
            ds.add(DataElement(tag, vr, PLANTED, validation_mode=config.IGNORE))
    return ds


def plant(ds: Dataset) -> Dataset:
    """The secrets in every text element, in private ones, within sequences and before the header."""
    ds.update(text_elements())
    block = ds.private_block(0x0099, "ZAPHODBEEBLE", create=True)
    block.add_new(1, "LO", PLANTED)
    block.add_new(2, "OB", PLANTED.encode() + b" ")
    block.add_new(3, "UN", PLANTED.encode() + b" ")
    within = Dataset()
    within.add(DataElement("PatientName", "PN", PLANTED, validation_mode=config.IGNORE))
    ds.RequestAttributesSequence = [within]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", PLANTED]
    ds.file_meta.ImplementationVersionName = "ZAPHODBEEBLE"
    ds.file_meta.SourceApplicationEntityTitle = "SAINTELSEWHERE"
    ds.preamble = PLANTED.encode().ljust(128, b"\0")
    return ds


def write_planted(folder, n, *, slices=SLICES, **fields):
    for z in range(slices):
        about = {"z": HEIGHTS[z], "number": z + 1, "study": f"{STUDY}.{n}"} | fields
        ds = dataset(hu_of(n)[z], **about)
        write(folder / f"{PLANTED}-{z + 1}.dcm", plant(ds))
    return folder


def write_broken(path, good, old, new):
    content = good.read_bytes()
    assert content.count(old) >= 1 and len(old) == len(new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.replace(old, new))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A source whose own path, folders and files are named after the patient; good studies, and one of every kind of damage."""
    source = tmp_path_factory.mktemp("privacy") / "ZAPHODBEEBLE_MRN77012" / PLANTED
    write_planted(source / PLANTED / "a", 1, SeriesInstanceUID="1.2.3")
    write_planted(source / "b", 2, slices=3, SeriesInstanceUID="ZAPHODBEEBLE.19570304", SOPInstanceUID="MRN77012")
    cut = write_planted(source / f"c {PLANTED}", 3, slices=3) / f"{PLANTED}-2.dcm"
    cut.write_bytes(cut.read_bytes()[:-100])
    write_planted(source / "d", 4, slices=2, StudyInstanceUID="ZAPHODBEEBLE^19570304")
    plain = write(source / "e" / "1.dcm", dataset(picture(), study=f"{STUDY}.6", RescaleIntercept="-99999999999"))
    write_broken(plain, plain, b"-99999999999", b"ZAPHODBEEBLE")
    write(source / "f" / "1.dcm", dataset(picture(), study=f"{STUDY}.7", Modality="MRN77012"))
    junk = source / PLANTED / "a" / f"junk {PLANTED}.dcm"
    junk.write_text(PLANTED)
    (source / "g").mkdir()
    (source / "g" / f"{PLANTED}.dcm").symlink_to("nowhere")
    write(source / "h" / "1.dcm", dataset(picture(), study=f"{STUDY}.8")).write_bytes(
        b"\0" * 128 + b"DICM" + PLANTED.encode() * 9
    )
    mask = write_nifti(source / "segmentations" / f"{STUDY}.1.nii", labels_of(1), HEIGHTS, "PIR")
    image = nibabel.load(mask)
    image.header["descrip"], image.header["intent_name"] = PLANTED.encode()[:80], b"MRN77012"
    nibabel.save(nibabel.Nifti1Image(np.array(image.dataobj), image.affine, image.header), mask)
    (source / "segmentations" / f"{STUDY}.2.nii").write_text(PLANTED)
    (source / "train.csv").write_text(
        "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7,name\n"
        f"{STUDY}.1,1,1,0,0,0,0,0,0,{PLANTED}\nZAPHODBEEBLE,0,0,0,0,0,0,0,0,{PLANTED}\n"
    )
    return source


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A real scheduler and two real workers of their own; yields its address and the file all three log into."""
    folder = tmp_path_factory.mktemp("dask")
    log, about = folder / "log", folder / "scheduler.json"
    where = ["--scheduler-file", str(about), "--no-dashboard"]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", *where]]
    local = ["--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(folder)]
    commands += 2 * [["worker", *where, *local]]
    with open(log, "ab") as out:
        started = [subprocess.Popen([sys.executable, "-m", "dask", *c], stdout=out, stderr=out) for c in commands]
        deadline = time.monotonic() + 60
        while not about.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield json.loads(about.read_text())["address"], log
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


def secrets_in(data: bytes | str) -> list[str]:
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    return [secret for secret in SECRETS if secret in text.lower()]


def check_folder(folder, but=()):
    for path in folder.rglob("*"):
        assert secrets_in(path.name) == [], path
        if path.is_file() and path.name not in but:
            assert secrets_in(path.read_bytes()) == [], path


def test_nothing_planted_gets_into_cache_report_or_log(planted, cluster, tmp_path, capfd):
    address, log = cluster
    made = tmp_path / "cache"
    command = ["build-cache", str(planted), str(made), "--folds", "2", "--scheduler", address]
    assert run(command) == 3
    assert verify(made) == [] and Cache(made).ids == [f"{STUDY}.1", f"{STUDY}.2"]
    assert Cache(made).study(f"{STUDY}.1").slice_box is not None and Cache(made).record(f"{STUDY}.2").series_uid == ""
    report = pd.read_csv(made / "report.csv", keep_default_na=False)
    found = set(report["reason"])
    assert found >= {"pixel_length", "invalid_id", "invalid_field", "not_dicom", "unreadable_file"}, found
    assert found >= {"segmentation_unreadable", "not_ct", "repeated_sop_uid", "invalid_uid"}, found
    assert run(["inspect", str(made)]) == 0 and run(["inspect", str(made), f"{STUDY}.2", "--json"]) == 0
    assert run(["verify", str(made)]) == 0 and run(command) == 3
    check_folder(made)
    for text in capfd.readouterr():
        assert text and secrets_in(text.replace(str(tmp_path), "")) == []
    assert b"Starting" in log.read_bytes() or log.stat().st_size > 100
    assert secrets_in(log.read_bytes()) == []


def test_paths_are_in_the_report_alone_and_only_when_asked_for(planted, cluster, tmp_path, capfd):
    made = tmp_path / "cache"
    assert run(["build-cache", str(planted), str(made), "--folds", "2", "--scheduler", cluster[0], "--paths"]) == 3
    check_folder(made, but=("report.csv",))
    assert secrets_in((made / "report.csv").read_bytes())
    assert secrets_in("".join(capfd.readouterr()).replace(str(tmp_path), "")) == []
    shutil.rmtree(made)


def test_a_line_about_a_wrong_source_does_not_say_what_is_below_it(planted, tmp_path, capfd):
    only = shutil.copytree(planted / "d", tmp_path / "source" / PLANTED)
    assert run(["build-cache", str(tmp_path / "source"), str(tmp_path / "cache"), "--workers", "1"]) == 2
    assert only.is_dir() and secrets_in("".join(capfd.readouterr()).replace(str(tmp_path), "")) == []
