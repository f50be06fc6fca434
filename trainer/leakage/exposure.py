"""Which labels and segmentations a run has seen: from its settings and the exposure files of its inputs. Without torch."""

from pathlib import Path

from cache_schema.errors import CacheError, CspineError
from cache_schema.tables import own_meta, write_table
from trainer.leakage import groups, lineage
from trainer.leakage.groups import Exposure
from trainer.process.command import warn_once
from trainer.runs.damaged import is_read_error
from trainer.runs.file_names import EXPOSURE_FILE, MODEL_FILE, PREDICTIONS
from trainer.runs.identity import exposure_of, model_key
from trainer.runs.inputs import Inputs
from trainer.runs.run_names import run_name
from trainer.settings.settings import Settings


def of_run(settings: Settings, inputs: Inputs) -> Exposure:
    """The exposure of the weights and of the rows they predict."""
    name = run_name(settings.run_dir)
    if settings.mode == "predict":
        weights = settings.weights or settings.run_dir
        # new studies may be predicted by weights of unknown exposure
        held = of_finished(weights) if settings.split == "held_out" else kept(weights)
        seen = [held if weights == settings.run_dir else lineage.of_weights(name, held)]
    else:
        seen = _of_training(name, settings, inputs)
    if path := settings.sources().get("boxes"):
        boxes = _boxes(path)
        seen.append(lineage.into_rows(name, boxes, inputs.eval_ids()))
        if not boxes:
            seen.append(lineage.unknown(name, f"boxes={path.name}"))
    return lineage.merged(seen)


def _of_training(name: str, settings: Settings, inputs: Inputs) -> list[Exposure]:
    ids, sources = inputs.train_ids(), settings.sources()
    seen = []
    if inputs.segmented:
        seen.append(lineage.used(name, ids, lineage.SEGMENTATION))
    if settings.facts.learns_from == "labels":
        seen.append(lineage.used(name, ids, lineage.LABEL))
    if settings.facts.backbone is None and settings.model.weights_file is not None:
        seen.append(lineage.unknown(name, f"model.weights_file={settings.model.weights_file.name}"))
    if path := sources.get("pseudo"):
        pseudo = lineage.kept_for_table(path)
        if pseudo is None:
            # pseudo labels are always made from their own study's labels
            pseudo = lineage.own_labels("pseudo_labels", ids)
            seen.append(lineage.unknown(name, f"pseudo={path.name}"))
        seen.append(lineage.into_weights(name, pseudo, rows=ids))
    if path := sources.get("backbone"):
        seen.append(lineage.into_weights(name, of_finished(path), role="backbone"))
    if path := sources.get("boxes"):
        seen.append(lineage.into_weights(name, _boxes(path), rows=ids))
    return seen


def check_scorable(settings: Settings, inputs: Inputs, exposure: Exposure) -> None:
    """Raises ForbiddenScore, before anything is trained, if the run may not be scored on its held-out studies."""
    if settings.split == "held_out":
        lineage.refuse_exposed(settings.facts.learns_from, exposure, inputs.scored_ids())


def keep(settings: Settings, key: str, exposure: Exposure) -> None:
    """Writes the exposure into the run's folder."""
    made_by = f"exposure of {run_name(settings.run_dir)}"
    write_table(settings.run_dir / EXPOSURE_FILE, groups.to_table(exposure), made_by, {"run": key})


def of_finished(run_dir: Path) -> Exposure:
    """The exposure of a finished run, or of predictions with another run's weights.

    Raises CacheError if it is missing or damaged: a run of unknown exposure may not be scored.
    """
    key = model_key(run_dir) or own_meta(run_dir / PREDICTIONS)["inputs"].get("run")
    if (found := exposure_of(run_dir, key)) is None:
        do = "start the run again to rewrite it"
        raise CacheError("is missing, or belongs to another run", where=run_dir / EXPOSURE_FILE, do=do)
    return groups.from_table(found)


def kept(run_dir: Path) -> Exposure:
    """The same; if it is missing or damaged, prints a warning and returns one group of kind `unknown`."""
    try:
        return of_finished(run_dir)
    except CspineError as error:
        if is_read_error(error):
            raise  # not to be recorded as unknown
        warn_once(str(error))
        return lineage.unknown(run_name(run_dir), MODEL_FILE)


def _boxes(table: Path) -> Exposure:
    """The exposure of study boxes; empty if it is unknown."""
    found = None if str(table) == "cache" else lineage.kept_for_table(table)
    return () if found is None else found
