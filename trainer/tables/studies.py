"""Predictions of stage 4 -> study_predictions -> submission (reference 9); of stage 3 -> the most suspicious slices."""

import pandas as pd

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import FRACTURES
from trainer.tables.pooling import mean_over_runs


def study_predictions(predictions: list[pd.DataFrame], labels: pd.DataFrame) -> pd.DataFrame:
    """id, fold (null where unknown), patient_overall, C1..C7: the mean of the runs' probabilities, runs. Sorted by id.

    predictions: one frame per run: id, patient_overall, C1..C7. labels: id, fold.
    """
    table = mean_over_runs([frame[["id", *TARGETS]] for frame in predictions], ["id"])
    folds = labels.set_index("id")["fold"].astype("Int64")
    table.insert(1, "fold", folds.reindex(table["id"]).array)
    return table


def suspected_slices(predictions: list[pd.DataFrame]) -> pd.DataFrame:
    """id, level, z_index, fracture: for each study and level the slice with the highest fracture value of stage 3. Sorted.

    predictions: one frame per run: id, z_index (a triplet's middle slice), C1_frac..C7_frac; averaged over the runs.
    """
    mean = mean_over_runs([frame[["id", "z_index", *FRACTURES]] for frame in predictions], ["id", "z_index"])
    parts = []
    for level, column in zip(LEVELS, FRACTURES, strict=True):
        peaks = mean.loc[mean.groupby("id")[column].idxmax()]
        parts.append(
            pd.DataFrame({"id": peaks["id"], "level": level, "z_index": peaks["z_index"], "fracture": peaks[column]})
        )
    return pd.concat(parts).sort_values(["id", "level"]).reset_index(drop=True)


def submission(table: pd.DataFrame) -> pd.DataFrame:
    """row_id (`<id>_<target>`), fractured: eight rows per study, sorted by study, targets in the competition's order."""
    long = table.sort_values("id").set_index("id")[list(TARGETS)].stack()
    row_ids = [f"{id}_{target}" for id, target in long.index]
    return pd.DataFrame({"row_id": row_ids, "fractured": long.to_numpy()})
