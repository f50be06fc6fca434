"""Fracture twins: the same phantom, voxel for voxel, with and without one fracture."""

import dataclasses
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import pandas as pd

from cache_schema import LEVELS
from preprocess.phantom.dicom import plan_files, write_dicom
from preprocess.phantom.study import make_phantom_study
from trainer.predict import predict_studies

CACHE, RUNS = "cache-twins", "runs-twins"
SEED = 0


def write_twins(out: Path, pairs: int, first: int, slices: int) -> None:
    """OUT/train_images and OUT/twins.csv (whole, broken, level): persons from number `first` on, whom no model has seen."""
    if (out / "twins.csv").is_file() and len(pd.read_csv(out / "twins.csv")) == pairs:
        return
    orders = [(out, first + pair, slices, pair % len(LEVELS) + 1) for pair in range(pairs)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(_write_pair, orders))
    pd.DataFrame(rows, columns=["whole", "broken", "level"]).to_csv(out / "twins.csv", index=False)


def _write_pair(order: tuple[Path, int, int, int]) -> tuple[str, str, str]:
    out, index, slices, level = order
    cv2.setNumThreads(1)
    plan = plan_files(SEED, index)
    twins = [(plan, ()), (dataclasses.replace(plan, study_uid=f"{plan.study_uid}.{level}"), (level,))]
    for own, levels in twins:
        study = make_phantom_study(SEED, index, slices, levels)
        write_dicom(out / "train_images" / own.study_uid, study.hu, study.scan, own)
    return twins[0][0].study_uid, twins[1][0].study_uid, LEVELS[level - 1]


def predict_twins(out: Path, models: Path) -> pd.DataFrame:
    """id, patient_overall, C1..C7: the mean over all stage-4 runs, on boxes from all stage-1 runs."""
    return predict_studies(out / CACHE, models, out / RUNS, {})[0]
