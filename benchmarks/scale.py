"""What grows with the size of a set: `make bench-scale`.

Each size is a source of its own, of tiny distinct CT files in the RSNA layout, and each step runs in a fresh process. The files have
just been written, so they lie in the system's page cache: a disk or a server adds its own time.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from benchmarks.rounds import machine, print_and_keep, table
from cache_schema import Cache, CacheWriter
from cache_schema.documents import SETTLED_SECONDS
from cache_schema.layout import GROUP
from cache_schema.store import read_study_document
from cache_schema.study import Study, StudyRecord
from cache_schema.writer import study_document
from preprocess.build.dask_pool import Pool
from preprocess.build.job import BuildJob
from preprocess.build.planned import studies_to_build
from preprocess.build.source import Source
from preprocess.build.state import options_digest
from preprocess.build.task import StudyTask

SIZES = (1_000, 10_000, 100_000, 711_601)
"""files; the last is the RSNA 2022 set"""
FILES_A_STUDY, SIDE = 352, 16
MOST_MB, MOST_GROWTH = 1_000, 500
"""aims for the main process: memory with the whole set, bytes that a file adds"""
NUMBER, HEIGHT = "900000", "7777.77"
"""what the files of a study differ in, where their header is made; of fixed length, as all lengths in it stay"""

Measured = dict[str, float]
"""seconds of each part of a step, and MB of memory at its peak"""


def write_source(folder: Path, files: int) -> None:
    """`train_images/<study>/<n>.dcm`, all of them different."""
    chance = np.random.default_rng(0)
    for study in range(-(-files // FILES_A_STUDY)):
        uid = f"1.2.826.0.1.3680043.{100_000 + study}"
        header = _header(uid)
        place = folder / "train_images" / uid
        place.mkdir(parents=True)
        for n in range(1, min(FILES_A_STUDY, files - study * FILES_A_STUDY) + 1):
            head = header.replace(NUMBER.encode(), b"%d" % (100_000 + n)).replace(
                HEIGHT.encode(), b"%07.2f" % (500 - 0.625 * n)
            )
            (place / f"{n}.dcm").write_bytes(head + chance.bytes(2 * SIDE * SIDE))


def _header(uid: str) -> bytes:
    """All that comes before the value of PixelData."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{uid}.1.{NUMBER}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid, f"{uid}.1", f"{uid}.2"
    ds.ImageType, ds.Modality, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "PHANTOM"
    ds.PatientID, ds.PatientName = uid.rpartition(".")[2], ""
    ds.SeriesNumber, ds.InstanceNumber, ds.ConvolutionKernel = "1", NUMBER, "BONE"
    ds.SliceThickness, ds.KVP = "0.625", "120"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["-4.5", "-4.5", HEIGHT], ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = ["0.6", "0.6"], "1", "-1024"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", SIDE, SIDE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = bytes(2 * SIDE * SIDE)
    ds["PixelData"].VR = "OW"
    whole = io.BytesIO()
    ds.save_as(whole, enforce_file_format=True)
    return whole.getvalue()[: -2 * SIDE * SIDE]


def first_build(source: Path, cache: Path) -> Measured:
    """All that a build does but decoding: files, headers, plans, and every study's task sent to a worker and back."""
    seconds = _Seconds()
    writer, tree = CacheWriter(cache), Source(source, [cache], cache, trust_mtime=False)
    job = BuildJob(source, writer, None, None, None, options_digest(None), None, False, False, _silent)
    with Pool(None, None, _silent) as pool:
        list(pool.run(abs, [0]))  # workers start
        seconds.part("start")
        files, digest = len(tree.files), tree.digest
        seconds.part("files")
        found = job.read_headers(tree.files, pool)
        seconds.part("headers")
        planned = studies_to_build(job, found, pool.run)
        seconds.part("plans")
        slices = sum(count for _, count in pool.run(_slices, job.tasks(planned.waiting)))
        seconds.part("tasks")
        workers = max(_peak_mb(process.pid) for process in psutil.Process().children(recursive=True))
    if slices != files or not digest:
        sys.exit(f"{slices} of {files} slices were planned")
    tree.keep(writer)
    return {**seconds.parts, "main": _peak_mb(), "workers": workers}


def _slices(task: StudyTask) -> int:
    return len(task.plan.slices)


def second_build(source: Path, cache: Path) -> Measured:
    return _look(source, cache, trust_mtime=False)


def second_build_by_folders(source: Path, cache: Path) -> Measured:
    return _look(source, cache, trust_mtime=True)


def _look(source: Path, cache: Path, *, trust_mtime: bool) -> Measured:
    """Whether anything changed, as the digest of the source tells."""
    seconds = _Seconds()
    tree = Source(source, [cache], cache, trust_mtime)
    assert tree.digest
    seconds.part("look")
    if trust_mtime and "_listing" in vars(tree):
        sys.exit("files were looked at although no folder has changed")
    return {**seconds.parts, "main": _peak_mb()}


def index(source: Path, cache: Path) -> Measured:
    """The index of as many studies as the source has, from records that differ in their names."""
    folders = sorted((source / "train_images").iterdir())
    writer = CacheWriter(cache)
    writer.publish(_study(folders[0].name))
    record, document = read_study_document(cache / folders[0].name)
    for folder in folders[1:]:
        place = cache / folder.name
        (place / "pixels").mkdir(parents=True)
        named = record.model_copy(update={"id": folder.name, "study_uid": folder.name})
        (place / GROUP).write_bytes(study_document(named, document["files"]))
    seconds = _Seconds()
    writer.finish()
    seconds.part("write")
    if len(Cache(cache).index) != len(folders):
        sys.exit("the index lacks studies")
    seconds.part("read")
    return {**seconds.parts, "main": _peak_mb()}


def _study(id: str) -> Study:
    pixels = np.zeros((1, SIDE, SIDE), np.uint8)
    record = StudyRecord(
        id=id,
        study_uid=id,
        series_uid="",
        rows=SIDE,
        columns=SIDE,
        slices=1,
        spacing=None,
        pixel_spacing=(0.6, 0.6),
        slice_spacing=None,
        orientation=(1, 0, 0, 0, 1, 0),
        position=(0, 0, 0),
        transfer_syntax=ExplicitVRLittleEndian,
        decoder="",
        source_digest="",
    )
    return Study(record, np.zeros(1), np.ones(1, np.int32), _Held(pixels))


class _Held:
    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def read(self, z0: int, z1: int, box: object = None) -> np.ndarray:
        return self._pixels[z0:z1]


class _Seconds:
    """Time by parts of a step."""

    def __init__(self) -> None:
        self.parts: Measured = {}
        self._since = time.perf_counter()

    def part(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self._since = now - self._since, now


def _peak_mb(pid: int | str = "self") -> float:
    """Of memory that a process has filled, of its own: what it was before an exec does not count."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0)


def _silent(line: str) -> None:
    pass


STEPS: dict[str, Callable[[Path, Path], Measured]] = {
    each.__name__: each for each in (first_build, second_build, second_build_by_folders, index)
}


def in_fresh_process(step: str, source: Path, cache: Path) -> Measured:
    command = [sys.executable, "-m", "benchmarks.scale", "--step", step, str(source), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{step}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def headers_and_index(sizes: list[int]) -> Iterator[str]:
    """Two tables: what a first build costs without decoding, and what an unchanged source and the index cost."""
    first, again, before = [], [], None
    for files in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
            source, cache = Path(name) / "rsna", Path(name) / "cache"
            write_source(source, files)
            time.sleep(1.5 * SETTLED_SECONDS)  # times of folders that have just changed are not kept
            found = {step: in_fresh_process(step, source, cache) for step in STEPS}
        build, plain, trusting, tables = found.values()
        growth = (build["main"] - before[1]) * 1e6 / (files - before[0]) if before else None
        before = files, build["main"]
        first.append(
            (
                *(files, f"{files / build['headers']:.0f}"),
                *(f"{build[part]:.1f}" for part in ("files", "headers", "plans", "tasks")),
                *(f"{build[part]:.0f}" for part in ("main", "workers")),
                "" if growth is None else f"{growth:.0f}",
            )
        )
        looks = (f"{each['look']:.2f}" for each in (plain, trusting))
        again.append(
            (
                files,
                *looks,
                f"{plain['main']:.0f}",
                -(-files // FILES_A_STUDY),
                *map("{:.2f}".format, (tables["write"], tables["read"])),
            )
        )
    title = f"a first build without decoding; aims: main process below {MOST_MB} MB, below {MOST_GROWTH} bytes a file"
    head = (
        "files",
        "files/s",
        "list, stat s",
        "headers s",
        "plans s",
        "tasks s",
        "main MB",
        "worker MB",
        "bytes a file more",
    )
    yield table(title, head, first)
    head = ("files", "stat s", "--trust-mtime s", "main MB", "studies", "index written s", "read s")
    yield table("a source that has not changed, and the index", head, again)


def report(sizes: list[int]) -> Iterator[str]:
    about = "MB at the peak, and how much of it each file adds to the size before"
    yield f"{machine()}\n{FILES_A_STUDY} files a study, {SIDE} x {SIDE} pixels; {about}\n"
    yield from headers_and_index(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=list(SIZES), help="sizes of sources")
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "SOURCE", "CACHE"), help="one step, in this process")
    given = parser.parse_args()
    if given.step:
        step, source, cache = given.step
        print(json.dumps(STEPS[step](Path(source), Path(cache))))
        return
    print_and_keep(report(sorted(given.files)), "scale", given.keep)


if __name__ == "__main__":
    main()
