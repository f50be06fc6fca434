"""The results of one study as DICOM files."""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pydicom.dataset import Dataset

from cache_schema.documents import write_whole
from cache_schema.errors import StudyRefused, UsageError
from cache_schema.layout import LEVELS, TARGETS
from preprocess.results.identifiers import Identifiers, digest_of_results
from preprocess.results.key_slice import KeySlice
from preprocess.results.source_image import read_source
from preprocess.series.study_plan import StudyPlan

CAPTURES, REPORT = "SC", "SR.dcm"


def require_highdicom() -> None:
    """Raises UsageError where highdicom is not installed."""
    if find_spec("highdicom") is None:
        raise UsageError("DICOM results need highdicom", do="install cspine[dicom]")


def write_results(
    plan: StudyPlan,
    key_slices: Sequence[KeySlice],
    probabilities: Mapping[str, float | None],
    calibrated: Mapping[str, float] | None,
    notes: Sequence[str],
    models_digest: str,
    out: Path,
) -> list[Path]:
    """Write out/SC/0001.dcm ... (secondary captures, in the order of the key slices) and out/SR.dcm; returns these paths.

    plan: of what was read, as `study.pixels.plan` has it; its files must still be there. probabilities, calibrated: 0 to 1,
    by the names of TARGETS; None or absent: not evaluated. notes: sentences about the whole study. models_digest: of the models'
    weights. out: of this study alone; SC/*.dcm and SR.dcm of an earlier run are removed first, and SR.dcm comes last.

    The files carry the patient's name and all else by which the study is filed. The same arguments give the same bytes.
    Raises UsageError without highdicom, StudyRefused where a source file changed or is of another patient, ValueError for a
    value out of range.
    """
    require_highdicom()
    from preprocess.results.filing import VERSION
    from preprocess.results.report import structured_report
    from preprocess.results.secondary_capture import secondary_captures

    _check(plan, key_slices, probabilities, calibrated or {})
    first = read_source(plan, 0)
    sources = [read_source(plan, each.z_index) for each in key_slices]
    if any(source.filed_by.PatientID != first.filed_by.PatientID for source in sources):
        raise StudyRefused("patient_ids_differ", "its images have different PatientIDs", study=plan.id)
    content = digest_of_results(
        key_slices,
        probabilities,
        calibrated,
        notes,
        [(source.sop_uid, source.frame or 0) for source in sources],
        VERSION,
    )
    identifiers = Identifiers(plan.study_uid, models_digest, content)
    captures = secondary_captures(plan, key_slices, sources, identifiers)
    report = structured_report(key_slices, sources, first, probabilities, calibrated or {}, notes, identifiers)
    files = {out / CAPTURES / f"{number:04d}.dcm": each for number, each in enumerate(captures, start=1)}
    files[out / REPORT] = report
    for old in (out / REPORT, *sorted((out / CAPTURES).glob("*.dcm"))):
        old.unlink(missing_ok=True)
    (out / CAPTURES).mkdir(parents=True, exist_ok=True)
    for path, dataset in files.items():
        write_whole(path, _encoded(dataset))
    return list(files)


def _check(
    plan: StudyPlan,
    key_slices: Sequence[KeySlice],
    probabilities: Mapping[str, float | None],
    calibrated: Mapping[str, float],
) -> None:
    shape = plan.rows, plan.columns, 3
    for each in key_slices:
        if each.level not in LEVELS or not 0 <= each.z_index < len(plan.slices) or not 0 <= each.fracture <= 1:
            raise ValueError(f"no key slice: level {each.level}, slice {each.z_index}, fracture {each.fracture}")
        if each.image.shape != shape or each.image.dtype != "uint8":
            raise ValueError(f"an image of {each.image.dtype} {each.image.shape}, and not of uint8 {shape}")
    for given in (probabilities, calibrated):
        for target, value in given.items():
            if target not in TARGETS or (value is not None and not 0 <= value <= 1):
                raise ValueError(f"no probability: {target} {value}")


def _encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
