"""Predictions of stage 4 -> study_predictions -> submission (reference 9)."""

import pandas as pd

from cache_schema import TARGETS
from trainer.tables.runs import mean_over_runs


def study_predictions(predictions: list[pd.DataFrame], labels: pd.DataFrame) -> pd.DataFrame:
    """id, fold (null where unknown), patient_overall, C1..C7: the mean of the runs' probabilities, runs. Sorted by id.

    predictions: one frame a run: id, patient_overall, C1..C7. labels: id, fold.
    """
    table = mean_over_runs([frame[["id", *TARGETS]] for frame in predictions], ["id"])
    folds = labels.set_index("id")["fold"].astype("Int64")
    table.insert(1, "fold", folds.reindex(table["id"]).array)
    return table


def submission(table: pd.DataFrame) -> pd.DataFrame:
    """row_id (`<id>_<target>`), fractured: eight rows a study, studies sorted, targets in the competition's order."""
    long = table.sort_values("id").set_index("id")[list(TARGETS)].stack()
    row_ids = [f"{id}_{target}" for id, target in long.index]
    return pd.DataFrame({"row_id": row_ids, "fractured": long.to_numpy()})
