"""Makes the tables of RUNS/tables from finished runs, each only where what it is made from has changed."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.tables import read_table, table_meta, write_table
from trainer.identity import PREDICTIONS
from trainer.tables import boxes, pseudo, ratios, runs, studies
from trainer.tables.scores import HELD_OUT, Score, read_scores, render, score_folds, write_scores
from trainer.tables.truth import box_truth, ratio_truth

UNSEGMENTED = "held_out_unsegmented"
VERSION = "1"
"""raised when a table is computed differently from the same inputs"""


def study_boxes(out: Path, cache: Cache, run_dirs: list[Path]) -> bool:
    def make(predictions: list[pd.DataFrame]) -> pd.DataFrame:
        known = cache.index[["id", "rows", "columns", "slices"]]
        return boxes.study_boxes(predictions, known[known["id"].isin(set(pd.concat(predictions)["id"]))])

    return _from_runs(out, "study_boxes", run_dirs, make)


def vertebra_ratios(out: Path, cache: Cache, run_dirs: list[Path]) -> bool:
    return _from_runs(out, "vertebra_ratios", run_dirs, ratios.vertebra_ratios)


def pseudo_labels(out: Path, cache: Cache, run_dirs: list[Path]) -> bool:
    source = _path(out, "vertebra_ratios")
    labels = cache.labels
    label_rows = labels[["id", *TARGETS]].astype({target: "Int64" for target in TARGETS}).to_csv(index=False)
    inputs = {"vertebra_ratios": table_meta(source)["digest"], "labels": _text_digest(label_rows)}
    return _make(out, "pseudo_labels", inputs, lambda: pseudo.pseudo_labels(read_table(source), labels))


def study_predictions(out: Path, cache: Cache, run_dirs: list[Path]) -> bool:
    """study_predictions.parquet, and submission.csv from it."""
    made = _from_runs(
        out, "study_predictions", run_dirs, lambda predictions: studies.study_predictions(predictions, cache.labels)
    )
    submission = studies.submission(read_table(_path(out, "study_predictions")))
    _write_text(out / "tables" / "submission.csv", submission.to_csv(index=False))
    return made


def scores(out: Path, cache: Cache, run_dirs: list[Path]) -> bool:
    """scores.json: every stage and variant that has held-out predictions, seeds averaged, folds together."""
    by_variant: dict[tuple[str, str], list[Path]] = {}
    for run_dir in run_dirs:
        stage, _, variant = run_dir.parent.name.rpartition("-")
        by_variant.setdefault((stage, variant), []).append(run_dir)
    rows: list[Score] = []
    for (stage, variant), own in by_variant.items():
        rows += _score(stage, variant, out, cache, [read_table(run_dir / PREDICTIONS) for run_dir in own])
    write_scores(out / "tables" / "scores.json", rows)
    return True


TABLES: dict[str, Callable[[Path, Cache, list[Path]], bool]] = {
    "study_boxes": study_boxes,
    "vertebra_ratios": vertebra_ratios,
    "pseudo_labels": pseudo_labels,
    "study_predictions": study_predictions,
    "scores": scores,
}
"""name -> (RUNS, cache, the runs it is made from) -> whether it had to be made"""

MADE_FROM = {"study_boxes": "bbox", "vertebra_ratios": "vertebrae", "study_predictions": "study_fracture"}
"""the stage whose held-out predictions a table pools"""


def make_all(out: Path, cache: Cache) -> list[str]:
    """Every table that the runs found under RUNS allow; returns their names."""
    found = held_out_runs(out)
    made = []
    for name, stage in MADE_FROM.items():
        own = [run_dir for run_dir in found if run_dir.parent.name.rpartition("-")[0] == stage]
        if own:
            TABLES[name](out, cache, own)
            made.append(name)
            if name == "vertebra_ratios":
                pseudo_labels(out, cache, own)
                made.append("pseudo_labels")
    if found:
        scores(out, cache, found)
        made.append("scores")
    return made


def held_out_runs(out: Path) -> list[Path]:
    """Folders of runs that hold a fold out and have predicted it, sorted."""
    found = out.glob(f"[!.]*-*/fold[0-9]*-seed*/{PREDICTIONS}")
    return sorted(path.parent for path in found if table_meta(path)["inputs"].get("split") == "held_out")


def summary(out: Path) -> str:
    path = out / "tables" / "scores.json"
    return render(read_scores(path)) + "\n" if path.is_file() else ""


def _score(stage: str, variant: str, out: Path, cache: Cache, predictions: list[pd.DataFrame]) -> list[Score]:
    folds = cache.labels.set_index("id")["fold"].dropna().astype(int)
    segmented = cache.index.loc[cache.index["segmentation_digest"].notna(), "id"]
    every = set(folds.index)
    splits = {HELD_OUT: every}
    if stage == "bbox":
        pooled, truth = runs.mean_over_runs(predictions, ["id", "z_index"]), box_truth(map(cache.study, segmented))
    elif stage == "vertebrae":
        pooled, truth = ratios.vertebra_ratios(predictions), ratio_truth(map(cache.study, segmented))
    else:
        splits[UNSEGMENTED] = every - set(segmented)
        if stage == "slice_fracture":
            if not _path(out, "pseudo_labels").is_file():
                return []  # trained on pseudo labels from elsewhere
            pooled, truth = runs.mean_over_runs(predictions, ["id", "z_index"]), read_table(_path(out, "pseudo_labels"))
        else:
            pooled, truth = studies.study_predictions(predictions, cache.labels), cache.labels[["id", *TARGETS]]
    return score_folds(stage, pooled, truth, folds, variant=variant, splits=splits)


def _from_runs(out: Path, name: str, run_dirs: list[Path], make: Callable[[list[pd.DataFrame]], pd.DataFrame]) -> bool:
    paths = [run_dir / PREDICTIONS for run_dir in run_dirs]
    inputs = {str(path.parent.relative_to(out)): table_meta(path)["digest"] for path in paths}
    return _make(out, name, inputs, lambda: make([read_table(path) for path in paths]))


def _make(out: Path, name: str, inputs: dict[str, str], make: Callable[[], pd.DataFrame]) -> bool:
    """Writes the table unless it is there, made from these very inputs by this version."""
    path, made_by = _path(out, name), f"{name} {VERSION}"
    if path.is_file():
        meta = table_meta(path)
        if meta["inputs"] == inputs and meta["made_by"] == made_by:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, make(), made_by, inputs)
    return True


def _path(out: Path, name: str) -> Path:
    return out / "tables" / f"{name}.parquet"


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
