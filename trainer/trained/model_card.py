"""The model card of a packed file: Markdown, made from what runs and tables record. What is not recorded is `unknown`."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cache_schema import read_table
from cache_schema.errors import CspineError
from trainer.answers.anatomy import LevelsFound
from trainer.leakage import exposure, lineage
from trainer.runs.file_names import PREDICTIONS
from trainer.runs.run_names import RunName
from trainer.runs.weights import MADE_WITH
from trainer.scores.calibration import Calibration, TargetCalibration
from trainer.scores.scores import Score, read_scores
from trainer.settings.stage_registry import stage_class
from trainer.trained.models import Models, TrainedModel

UNKNOWN = "unknown"
USE = """\
For research on fractures of the cervical spine (C1 to C7) in CT. **Not a medical device**: not for diagnosis, triage or any
other decision about a patient. Input: one axial CT series of the neck, as DICOM; output: for each study eight probabilities, and
for each level the most suspicious slice."""
LIMITS = """\
- The probabilities are those of the studies that the models were trained on. Other scanners, kernels, patients and prevalences
  may change them; an image far from all of these is flagged `unlike_training`, which does not find every such image.
- The competition's loss weights positives double, so uncalibrated probabilities are too high.
- Slices and heat maps show what a network reacts to, which need not be the fracture.
- Other findings than fractures, and other parts of the body, are not looked for."""


def model_card(manifest: Mapping[str, Any], models: Models) -> str:
    """manifest: of the packed file, without its list of files."""
    every = models.every
    seen = {each["name"]: each["seen"] for each in manifest["models"]}
    parts = {
        "Intended use": USE,
        "Models": _models(every, seen),
        "How they were made": _graph(every),
        "Scores on held-out studies": _scores(models.where, {model.name for model in every}, models.levels_found),
        "Exposure and leakage": _leakage(every, seen),
        "Calibration": _calibration(models.calibration),
        "When time is short": _leave_out(manifest["leave_out"]),
        "Limits": LIMITS,
        "Versions": _versions(manifest, every),
        "Licences": _licences(every),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    return f"# Models of cervical spine fractures\n\nResearch only, not a medical device.\n\n{body}\n"


def _models(models: Iterable[TrainedModel], seen: Mapping[str, Mapping[str, list[str]]]) -> str:
    columns = ("model", "backbone", "pixels", "labels seen", "segmentations seen")
    rows = [
        (each.name, each.config["model"]["name"], each.config["data"]["size"], *map(len, seen[each.name].values()))
        for each in models
    ]
    return f"{_table(columns, rows)}\n\nSeen: studies whose label or segmentation reached the weights, directly or by a table."


def _graph(models: Collection[TrainedModel]) -> str:
    """Which tables and runs each model was made from, by the first digits of their digests."""
    names = {model.digest: model.name for model in models}
    lines = []
    for model in models:
        inputs = json.loads(model.metadata.get("inputs", "{}"))
        made_from = [f"{name} {names.get(digest, digest[:12])}" for name, digest in sorted(inputs.items())]
        fold = model.metadata["fold"]
        held = "no study" if fold == "all" else f"fold {fold}"
        lines.append(f"- `{model.name}` holds {held} out; from {', '.join(made_from) or UNKNOWN}")
    thresholds = "Study boxes are the mean of the bbox models' boxes, cut by the thresholds of the manifest."
    return "\n".join([*lines, "", thresholds])


def _scores(runs: Path, names: set[str], found: LevelsFound | None) -> str:
    path = runs / "tables/scores.json"
    if not path.is_file():
        return f"{UNKNOWN.capitalize()}: the runs hold no scores."
    kinds = {RunName.of(name)[:2] for name in names}
    rows = [row for row in read_scores(path) if (row.stage, row.variant) in kinds]
    columns = ("stage", "split", "studies", "metric", "value", "baseline", "value / baseline", "95 % bounds")
    about = "Out of fold: each study by the runs that hold it out. `iou` is better above 1, all others below."
    if found is not None:
        about += f" The slice models find levels in {found.found} of {found.studies} held-out studies."
    return f"{_table(columns, map(_score_row, rows))}\n\n{about}" if rows else f"{UNKNOWN.capitalize()}."


def _score_row(row: Score) -> tuple[Any, ...]:
    kind, bounds = f"{row.stage} {row.variant}", f"{row.low:.3f} to {row.high:.3f}"
    baseline = f"{row.baseline} {row.baseline_value:.4f}"
    return kind, row.split, row.n, row.metric, f"{row.value:.4f}", baseline, f"{row.ratio:.3f}", bounds


def _leakage(models: Iterable[TrainedModel], seen: Mapping[str, Mapping[str, list[str]]]) -> str:
    lines = [f"- `{model.name}`: {_exposed(model)}" for model in models]
    studies = {each for own in seen.values() for known in own.values() for each in known}
    known = f"The file names {len(studies)} studies whose truth reached its models, as salted hashes."
    return "\n".join([*lines, "", known])


def _exposed(model: TrainedModel) -> str:
    """Whether the model has seen the truth of the studies that it holds out."""
    path = model.where / PREDICTIONS
    if not path.is_file():
        return "holds nothing out"
    try:
        ids = set(read_table(path, ["id"])["id"])
        seen = exposure.of_finished(model.where)
        lineage.refuse_exposed(stage_class(model.stage).learns_from, seen, ids)
    except lineage.ForbiddenScore as error:
        return error.what
    except CspineError as error:
        return f"{UNKNOWN} ({error.what})"
    if unsure := lineage.unknown_inputs(seen):
        return f"{UNKNOWN} through {unsure[0].way}"
    return f"has not seen the truth of the {len(ids)} studies that it holds out"


def _calibration(calibration: Calibration | None) -> str:
    """Of each target the method, and how far its probabilities are to be believed before and after."""
    if calibration is None:
        return "None: no out-of-fold predictions to learn it from."
    columns = ("target", "studies", "positives", "method", "log loss", "calibrated", "Brier", "ECE", "calibrated")
    rows = [(name, *_calibrated(target)) for name, target in calibration.targets.items()]
    about = (
        "Cross-fitted: each study by the others' folds. ECE: expected calibration error, 10 bins of equal count, with 95 % "
        "bounds. Thresholds for 90 % and 95 % sensitivity are in `cspine-models.json`."
    )
    return f"{_table(columns, rows)}\n\n{about}"


def _calibrated(target: TargetCalibration) -> tuple[Any, ...]:
    before, after = target.before, target.after
    if before is None or after is None:
        return target.n, target.positives, target.missing, "", "", "", "", ""
    losses = (f"{each.log_loss:.4f}" for each in (before, after))
    errors = (f"{each.ece.value:.3f} ({each.ece.low:.3f} to {each.ece.high:.3f})" for each in (before, after))
    return target.n, target.positives, target.method, *losses, f"{before.brier.value:.4f}", *errors


def _leave_out(names: Iterable[str]) -> str:
    listed = "\n".join(f"{number}. `{name}`" for number, name in enumerate(names, 1))
    return f"Models may be left out in this order:\n\n{listed}" if listed else "No model may be left out."


def _versions(manifest: Mapping[str, Any], models: Collection[TrainedModel]) -> str:
    stages = sorted({(model.stage, model.metadata["version"]) for model in models})
    trained = ", ".join(f"{stage} version {version}" for stage, version in stages)
    packed = f"Packed by {manifest['made_by']}, format {manifest['version']}. Trained with {trained}."
    lines = [f"- `{model.name}`: {_made_with(model)}" for model in models]
    return "\n".join([packed, "", *lines])


def _made_with(model: TrainedModel) -> str:
    if MADE_WITH not in model.metadata:
        return f"versions of Python and packages {UNKNOWN}"
    return ", ".join(f"{name} {version}" for name, version in sorted(json.loads(model.metadata[MADE_WITH]).items()))


def _licences(models: Iterable[TrainedModel]) -> str:
    pretrained = sorted({model.config["model"]["name"] for model in models if model.config["model"]["pretrained"]})
    names = "`, `".join(pretrained)
    start = f"from the weights `{names}`, under licences of their own" if pretrained else "from random weights"
    return f"Code: Apache-2.0. Training started {start}. Licence of the training data and of these weights: {UNKNOWN}."


def _table(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
