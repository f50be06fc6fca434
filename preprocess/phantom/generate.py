"""A whole set of phantoms in the RSNA layout, study by study on every core."""

import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import pandas as pd

from cache_schema.errors import UsageError, reason_of
from cache_schema.layout import LEVELS
from cache_schema.machine import this_machine
from preprocess.phantom.dicom import SYNTAXES, plan_files, write_dicom
from preprocess.phantom.labels import draw_labels
from preprocess.phantom.nifti import write_segmentation
from preprocess.phantom.seeds import Stream, stream
from preprocess.phantom.study import make_phantom_study
from preprocess.phantom.truth import write_truth
from preprocess.progress import Steps, progress_over


@dataclass(frozen=True)
class _Order:
    """One study to make, as it is sent to a worker."""

    out: Path
    index: int
    slices: int
    segmented: bool
    levels: tuple[int, ...]
    syntax: str
    seed: int


def write_phantom(
    out: Path | str,
    studies: int = 24,
    slices: int = 96,
    segmented: int = 16,
    prevalence: float | None = None,
    syntax: str = "mixed",
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Write `studies` synthetic studies under `out`: train_images/, segmentations/, train.csv and truth/. Returns
    train.csv's table.

    A study is a function of (seed, its index, slices, prevalence, syntax): neither the number of studies nor of
    workers changes it. `segmented` of them (all, where there are fewer), chosen at random, get a mask. The set is built
    beside `out` and renamed, so `out` is there whole or not at all. Raises UsageError for impossible numbers or an
    `out` that already holds anything, and where the machine does not let it be written.
    """
    out = Path(out) if Path(out).name else Path(out).absolute()
    _check(out, studies, slices, segmented, prevalence, syntax)
    with_mask = _segmented(seed, studies, segmented)
    partial = out.with_name(out.name + ".partial")
    orders = [
        _Order(partial, i, slices, i in with_mask, draw_labels(seed, i, prevalence), syntax, seed)
        for i in range(studies)
    ]
    table = pd.DataFrame([_row(order) for order in orders]).sort_values("StudyInstanceUID", ignore_index=True)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in ("train_images", "segmentations", "truth"):
            (partial / folder).mkdir(parents=True)
        _run(orders, workers or this_machine().cores, progress)
        table.to_csv(partial / "train.csv", index=False)
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot be written ({reason_of(error)})", where=out) from error
        if isinstance(error, BrokenProcessPool):
            raise UsageError("a process died", where=out, do="run it again with fewer --workers") from error
        raise
    return table


def _check(out: Path, studies: int, slices: int, segmented: int, prevalence: float | None, syntax: str) -> None:
    if studies < 1:
        raise UsageError(f"{studies} studies asked for", where="--studies", expected="1 or more")
    if slices < 8:
        raise UsageError(f"{slices} slices asked for", where="--slices", expected="8 or more")
    if segmented < 0:
        raise UsageError(f"{segmented} segmented studies asked for", where="--segmented", expected="0 or more")
    if prevalence is not None and not 0 <= prevalence <= 1:
        raise UsageError(f"a prevalence of {prevalence} asked for", where="--prevalence", expected="0 to 1")
    if syntax not in SYNTAXES:
        raise UsageError(f"unknown syntax {syntax!r}", where="--syntax", expected=" or ".join(SYNTAXES))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("is not an empty folder", where=out, do="give a new folder, or remove this one first")


def _segmented(seed: int, studies: int, segmented: int) -> set[int]:
    """The `segmented` studies whose own random key is smallest."""
    keys = [stream(seed, Stream.CHOICE, i).random() for i in range(studies)]
    return set(sorted(range(studies), key=keys.__getitem__)[:segmented])


def _row(order: _Order) -> dict[str, str | int]:
    broken = {name: int(n in order.levels) for n, name in enumerate(LEVELS, start=1)}
    uid = plan_files(order.seed, order.index, order.syntax).study_uid
    return {"StudyInstanceUID": uid, "patient_overall": int(bool(order.levels)), **broken}


def _run(orders: list[_Order], workers: int, progress: bool) -> None:
    studies, slices = len(orders), sum(order.slices for order in orders)
    shown = progress_over(studies=studies, slices=slices) if progress else nullcontext(Steps(studies=0, slices=0))
    with shown as steps:
        if workers == 1 or len(orders) == 1:
            for order in orders:
                _write_study(order)
                steps.advance(studies=1, slices=order.slices)
            return
        with ProcessPoolExecutor(min(workers, len(orders)), mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(_write_study, order): order for order in orders}
            try:
                for done in as_completed(waiting):
                    done.result()
                    steps.advance(studies=1, slices=waiting[done].slices)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_study(order: _Order) -> None:
    cv2.setNumThreads(1)
    study = make_phantom_study(order.seed, order.index, order.slices, order.levels)
    plan = plan_files(order.seed, order.index, order.syntax)
    write_dicom(order.out / "train_images" / plan.study_uid, study.hu, study.scan, plan)
    if order.segmented:
        write_segmentation(
            order.out / "segmentations" / f"{plan.study_uid}.nii", study.labels, study.scan, plan.orientation
        )
    write_truth(order.out / "truth", study, plan)
