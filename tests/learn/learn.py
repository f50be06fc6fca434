"""`make learn`: whether the pipeline learns what a phantom's truth says, and nothing it must not know.

Steps that are done are skipped, so that the same command goes on after an interruption. Exit status 1 where a check fails.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from checks import (
    Check,
    a_head_is_not_taken_for_a_neck,
    beats_baselines,
    boxes_keep_the_neck,
    calibration_is_no_worse,
    disorders_are_found,
    heat_maps_point_at_the_fracture,
    levels_are_found,
    levels_raise_no_alarm,
    named_slices_lie_in_the_vertebra,
    permuted_labels_teach_nothing,
    twins_rank,
)
from control import PERMUTED, hardlinks, permuted
from peaks import peaks
from twins import CACHE, predict_twins, write_twins

from cache_schema import Cache
from cache_schema.errors import CspineError
from cache_schema.tables import read_table
from preprocess.build.build_cache import build_cache
from preprocess.labels import replace_labels
from preprocess.phantom.generate import write_phantom
from trainer import Predictor
from trainer.look.__main__ import main as look
from trainer.plan.graph import Plan, read_plan
from trainer.scores.calibration import Calibration
from trainer.scores.scores import read_scores
from trainer.tables.studies import suspected_slices

ROOT = Path(__file__).resolve().parents[2]
HEAD = ROOT.parent / "shared/realct/ge_head"
"""a real CT of a head, where there is one"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "work/learn")
    parser.add_argument("--plan", type=Path, default=ROOT / "configs/plan/learn.yaml")
    parser.add_argument("--control", type=Path, default=ROOT / "configs/learn-control.yaml", help="settings on top")
    parser.add_argument("--studies", type=int, default=96)
    parser.add_argument("--segmented", type=int, default=64)
    parser.add_argument("--slices", type=int, default=96)
    parser.add_argument("--prevalence", type=float, default=0.15, help="of each level")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--twins", type=int, default=16, help="pairs")
    asked = parser.parse_args()
    started, failed = time.monotonic(), 0
    try:
        for check in checks(asked):
            failed += not check.well
            print(f"{'well' if check.well else 'FAILED':6}  {check}", flush=True)
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{failed} checks failed; {(time.monotonic() - started) / 60:.0f} min")
    return 1 if failed else 0


def checks(asked: argparse.Namespace) -> Iterator[Check]:
    """Makes what a check needs, then yields it."""
    source, cache, runs = asked.out / "rsna", asked.out / "cache", asked.out / "runs"
    if not source.exists():
        write_phantom(source, asked.studies, asked.slices, asked.segmented, asked.prevalence)
    build_cache(source, cache, folds=asked.folds)
    run_plan(asked.plan, cache, runs)
    plan = read_plan(asked.plan, cache, runs)
    truth, boxes = source / "truth", read_table(runs / "tables/study_boxes.parquet")
    yield from beats_baselines(read_scores(runs / "tables/scores.json"))
    yield boxes_keep_the_neck(boxes, truth, Cache(cache).index)
    yield levels_are_found(read_table(runs / "tables/vertebra_ratios.parquet"), truth)
    own = [read_table(path) for path in sorted(runs.glob("slice_fracture-*/*/predictions.parquet"))]
    curves = dict(iter(pd.concat(own).groupby(["id", "z_index"], as_index=False).mean(numeric_only=True).groupby("id")))
    studies = {id: Cache(cache).study(id) for id in curves}
    yield levels_raise_no_alarm(curves, studies)
    yield disorders_are_found(curves, studies)
    yield named_slices_lie_in_the_vertebra(suspected_slices(own), Cache(cache).labels, truth)
    yield from heat_maps_point_at_the_fracture(peaks(Cache(cache), runs, boxes), truth)
    yield calibration_is_no_worse(Calibration.read(runs / "tables/calibration.json"))
    look([f"tables={runs}", f"cache={cache}", "report=true"])  # RUNS/look: reliability diagrams, ROC and scores

    if HEAD.is_dir():
        yield a_head_is_not_taken_for_a_neck(Predictor(runs)(HEAD))

    twins = asked.out / "twins"
    write_twins(twins, asked.twins, first=asked.studies, slices=asked.slices)
    build_cache(twins, asked.out / CACHE)
    yield twins_rank(predict_twins(asked.out, runs), pd.read_csv(twins / "twins.csv", dtype=str))

    yield permuted_labels_teach_nothing(read_scores(control(asked, plan, cache, runs) / "tables/scores.json"))


def control(asked: argparse.Namespace, plan: Plan, cache: Path, runs: Path) -> Path:
    """RUNS of stages 3 and 4 on labels that were shuffled by study within each fold, pseudo labels included.

    Stages 1 and 2 never see a fracture label: their runs are the same, and the plan finds them done.
    """
    shuffled, out = asked.out / f"cache-{PERMUTED}", asked.out / f"runs-{PERMUTED}"
    if not out.exists():
        shutil.rmtree(shuffled, ignore_errors=True)
        hardlinks(cache, shuffled)
        csv = asked.out / "permuted.csv"
        permuted(Cache(cache).labels, seed=0).rename(columns={"id": "StudyInstanceUID"}).to_csv(csv, index=False)
        replace_labels(shuffled, csv)
        beside = out.with_name(f"{out.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        for node in plan.runs:
            if node.kind.startswith(("bbox-", "vertebrae-")):
                hardlinks(node.output, beside / node.output.relative_to(runs))
        beside.rename(out)
    run_plan(asked.plan, shuffled, out, f"config={asked.control}")
    return out


def run_plan(plan: Path, cache: Path, out: Path, *words: str) -> None:
    """In a process of its own, as a user would. Raises CspineError where it fails; its own lines say why."""
    command = [sys.executable, "-m", "trainer.plan", str(plan), f"cache={cache}", f"out={out}", *words]
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise CspineError(f"the plan ended with status {status}", where=out)


if __name__ == "__main__":
    sys.exit(main())
