"""What a prediction writes beside its answers: tables, CSV files and report.html."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from cache_schema import TARGETS
from cache_schema.documents import write_whole
from cache_schema.tables import write_table
from trainer.answers.answer import Answer
from trainer.predictor.job import Job
from trainer.process.command import say
from trainer.scores.calibration import SUFFIX
from trainer.tables import boxes as box_table
from trainer.tables.studies import submission
from trainer.trained.models import BOXES as BBOX
from trainer.trained.models import STUDIES

CSV, SUBMISSION, SLICES_CSV, REPORT = "predictions.csv", "submission.csv", "slices.csv", "report.html"
BOXES, PREDICTIONS = "study_boxes.parquet", "study_predictions.parquet"
PARTS = ("decode", "boxes", "slices", "study", "report")


def write_tables(
    out: Path,
    answers: Sequence[Answer],
    job: Job,
    labels: pd.DataFrame | None,
    *,
    slices: bool,
    submitted: pd.DataFrame | None = None,
    tell: Callable[[str], None] = say,
) -> pd.DataFrame:
    """Writes all tables. submitted: the submission; by default that of the studies that are answered. Returns
    study_predictions. tell: takes lines about boxes."""
    write_whole(out / CSV, predictions_csv(answers).to_csv(index=False, float_format="%.4f").encode())
    columns = ["id", *TARGETS, "runs"]
    table = pd.DataFrame(
        [(each.id, *(each.outputs[name] for name in TARGETS), len(each.models[STUDIES])) for each in answers],
        columns=columns,
    )
    rows = submission(table) if submitted is None else submitted
    write_whole(out / SUBMISSION, rows.to_csv(index=False).encode())
    if not answers:
        return table
    made_from = {"models": job.models.digest}
    rows = [(each.id, *each.box, *each.z_range, each.box_source, len(each.models[BBOX])) for each in answers]
    boxes = pd.DataFrame(rows, columns=box_table.COLUMNS)
    write_table(out / BOXES, boxes, "trainer.predict", made_from)
    if lines := box_table.report(boxes):
        tell(lines)
    folds = pd.Series(dtype="Int64") if labels is None else labels.set_index("id")["fold"].astype("Int64")
    table.insert(1, "fold", folds.reindex(table["id"]).array)
    write_table(out / PREDICTIONS, table, "trainer.predict", made_from)
    if slices:
        named = [(each.id, *place) for each in answers for place in each.slices]
        where = pd.DataFrame(named, columns=["id", "level", "z_index", "slice_number", "fracture"])
        where = where[["id", "level", "slice_number", "z_index", "fracture"]]
        write_whole(out / SLICES_CSV, where.to_csv(index=False, float_format="%.4f").encode())
    return table


def write_page(job: Job, answers: Sequence[Answer], refused: Sequence[str]) -> None:
    """report.html: all cards, and what was refused."""
    from trainer.report.html import summary, write_report

    counts = ", ".join(f"{len(models)} {stage}" for stage, models in job.models.by_stage.items())
    about = [f"{len(answers)} studies; models: {counts}", *(f"refused: {line}" for line in refused)]
    entries = ((summary(answer), job.card(answer.id)) for answer in answers)
    write_report(job.out / REPORT, entries, about=about)


def predictions_csv(answers: Sequence[Answer]) -> pd.DataFrame:
    """id, the probabilities (null for levels outside the field of view), `<target>_calibrated` where known, flags."""
    rows = []
    for each in answers:
        calibrated = {f"{target}{SUFFIX}": value for target, value in each.shown_calibrated.items()}
        flags = dict.fromkeys(flag.code for flag in each.flags)
        rows.append({"id": each.id, **each.probabilities, **calibrated, "flags": " ".join(flags)})
    frame = pd.DataFrame(rows, columns=None if rows else ["id", *TARGETS, "flags"])
    columns = [f"{target}{SUFFIX}" for target in TARGETS if f"{target}{SUFFIX}" in frame]
    return frame[["id", *TARGETS, *columns, "flags"]].astype(dict.fromkeys((*TARGETS, *columns), "float64"))


def timing_line(answers: Sequence[Answer], seconds: float) -> str:
    """Seconds of each part, per study. A study is decoded while the networks work on the one before."""
    mean = pd.DataFrame([each.seconds for each in answers]).mean()
    parts = ", ".join(f"{name} {mean[name]:.2f}" for name in PARTS if name in mean)
    return f"seconds per study, over {len(answers)} studies: {parts}; all took {seconds:.1f} s, with the loading of the models"


def remove_results(out: Path) -> None:
    """Removes the results of an earlier command, which may be of other studies."""
    for name in (CSV, SUBMISSION, PREDICTIONS, BOXES, SLICES_CSV, REPORT):
        (out / name).unlink(missing_ok=True)
