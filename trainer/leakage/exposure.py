"""What a run has seen of whose labels and segmentations, from its settings and what stands beside its inputs. No torch."""

from pathlib import Path

import pandas as pd

from cache_schema.errors import CacheError, CspineError
from cache_schema.tables import own_meta, write_table
from trainer.leakage import lineage
from trainer.runs.damaged import tell
from trainer.runs.files import EXPOSURE_FILE, MODEL_FILE, PREDICTIONS
from trainer.runs.identity import kept_for_run, model_key
from trainer.runs.inputs import Inputs
from trainer.runs.run_names import run_name
from trainer.settings.settings import Settings


def of_run(settings: Settings, inputs: Inputs) -> pd.DataFrame:
    """The exposure of the weights, and of the held-out rows that they predict (columns: trainer.leakage.lineage)."""
    name = run_name(settings.run_dir)
    if settings.mode == "predict":
        weights = settings.weights or settings.run_dir
        # new studies are predicted all the same by weights of which nobody knows any longer what they have seen
        held = of_finished(weights) if settings.split == "held_out" else kept(weights)
        seen = [held if weights == settings.run_dir else lineage.of_weights(name, held)]
    else:
        seen = _of_training(name, settings, inputs)
    if settings.needs_boxes:
        boxes = _boxes(settings)
        seen.append(lineage.into_rows(name, boxes, inputs.eval_ids()))
        if boxes.empty:
            seen.append(lineage.unknown(name, f"boxes={settings.boxes.name}"))
    return lineage.merged(seen)


def _of_training(name: str, settings: Settings, inputs: Inputs) -> list[pd.DataFrame]:
    ids = inputs.train_ids()
    seen = []
    if inputs.segmented:
        seen.append(lineage.used(name, ids, lineage.SEGMENTATION))
    if settings.facts.learns_from == "labels":
        seen.append(lineage.used(name, ids, lineage.LABEL))
    if settings.facts.backbone is None and settings.model.weights_file is not None:
        seen.append(lineage.unknown(name, f"model.weights_file={settings.model.weights_file.name}"))
    if settings.pseudo is not None and settings.facts.learns_from == "pseudo_labels":
        pseudo = lineage.kept_for_table(settings.pseudo)
        if pseudo is None:
            # whatever else they come from, pseudo labels are made from their own study's labels
            pseudo = lineage.own_labels("pseudo_labels", ids)
            seen.append(lineage.unknown(name, f"pseudo={settings.pseudo.name}"))
        seen.append(lineage.into_weights(name, pseudo, rows=ids))
    if settings.backbone is not None and settings.facts.backbone is not None:
        seen.append(lineage.into_weights(name, of_finished(settings.backbone), role="backbone"))
    if settings.needs_boxes:
        seen.append(lineage.into_weights(name, _boxes(settings), rows=ids))
    return seen


def check_scorable(settings: Settings, inputs: Inputs, exposure: pd.DataFrame) -> None:
    """Raises ForbiddenScore before anything is trained, where the held-out studies could not be scored."""
    if settings.split == "held_out":
        lineage.refuse_exposed(settings.facts.learns_from, exposure, inputs.scored_ids())


def keep(settings: Settings, key: str, exposure: pd.DataFrame) -> None:
    """Beside the run's weights."""
    write_table(settings.run_dir / EXPOSURE_FILE, exposure, f"exposure of {run_name(settings.run_dir)}", {"run": key})


def of_finished(run_dir: Path) -> pd.DataFrame:
    """What lies beside a finished run's weights, or beside its predictions with another run's.

    Raises CacheError where it is gone or damaged: a run whose exposure nobody knows may not be scored.
    """
    key = model_key(run_dir) or own_meta(run_dir / PREDICTIONS)["inputs"].get("run")
    if (found := kept_for_run(run_dir, key)) is None:
        do = "run the run's own command again, which makes it anew"
        raise CacheError("is gone, or another run's", where=run_dir / EXPOSURE_FILE, do=do)
    return found


def kept(run_dir: Path) -> pd.DataFrame:
    """The same; where it is gone or damaged, that is said, and the frame holds one row of kind `unknown`."""
    try:
        return of_finished(run_dir)
    except CspineError as error:
        if isinstance(error.__context__, OSError) and not isinstance(error.__context__, FileNotFoundError):
            raise  # it cannot be read just now, which is not to be kept as unknown for good
        tell(error)
        return lineage.unknown(run_name(run_dir), MODEL_FILE)


def _boxes(settings: Settings) -> pd.DataFrame:
    """Empty where the boxes come without a lineage."""
    found = None if str(settings.boxes) == "cache" else lineage.kept_for_table(settings.boxes)
    return lineage.merged([]) if found is None else found
