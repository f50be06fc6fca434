"""Measures a training with these settings, and says what holds it back."""

from collections.abc import Mapping
from contextlib import closing

from cache_schema.machine import this_machine
from cache_schema.store_path import StorePath
from trainer.data.order import Training
from trainer.data.reader_pool import wanted_workers
from trainer.doctor.finding import MEANING, Machine, findings
from trainer.doctor.parts import part_seconds
from trainer.doctor.steps import Steps, step_seconds
from trainer.loop import Run
from trainer.runs.inputs import Inputs
from trainer.settings.settings import Settings

MOST_STEPS, MOST_ITEMS = 50, 400


def diagnose(settings: Settings, seconds: float) -> str:
    """The report. Raises CspineError for what a training would refuse. seconds: for each of two measurements, about."""
    with closing(Run(settings, Inputs(settings), "")) as run:
        ids = run.inputs.train_ids()
        items = run.training_items(ids)
        run.require_boxes(ids)
        run.keep_crops(ids)
        schedule = Training(items, settings.seed, settings.train.batch, by_block=run.by_block)
        parts, measured = part_seconds(run, schedule, ids, seconds, MOST_ITEMS)
        steps = step_seconds(run, run.stage.model(), schedule, ids, seconds, MOST_STEPS)
        return _report(parts, measured, steps, _machine(run))


def _machine(run: Run) -> Machine:
    data, cache, device = run.settings.data, run.inputs.cache, run.accelerator.device
    index = cache.index
    return Machine(
        gpu=device.type == "cuda",
        cores=this_machine().cores,
        workers=wanted_workers(data, device),
        loader=data.loader,
        resident=data.resident,
        in_store=isinstance(cache.path, StorePath),
        store_cache=data.store_cache is not None,
        crops=data.crop,
        whole_slices=bool((index["pixels"] == index[["slices", "rows", "columns"]].astype("int64").prod(axis=1)).all()),
        size=data.size,
    )


def _report(parts: Mapping[str, float], measured: int, steps: Steps, machine: Machine) -> str:
    where = "on a GPU" if machine.gpu else "on a CPU"
    lines = [f"{where}, {machine.cores} cores, data.loader={machine.loader}, data.workers={machine.workers}", ""]
    if parts:
        whole = sum(parts.values())
        lines += [f"One item in one process, mean of {measured}:"]
        lines += [
            f"  {name:9} {each * 1e3:9.2f} ms  {each / whole:4.0%}  {MEANING[name]}" for name, each in parts.items()
        ]
    else:
        lines += ["All crops are in GPU memory (data.resident=gpu): nothing is read while it trains."]
    lines += ["", f"One step of {steps.items} items, mean of {steps.steps}:"]
    lines += [
        f"  {name:9} {each * 1e3:9.2f} ms  {each / steps.seconds:4.0%}  {what}"
        for name, each, what in (
            ("wait", steps.wait, "for images that are not ready"),
            ("compute", steps.compute, MEANING["compute"]),
        )
    ]
    for name, found in zip(("What holds it back", "Besides"), findings(parts, steps, machine), strict=False):
        doing = "computing" if found.part == "compute" else f"waiting for images: {found.why}"
        lines += ["", f"{name}: {found.part}. {found.share:.0%} of a step is {doing}.", "What changes it:"]
        lines += [f"  {switch}" for switch in found.switches]
    return "\n".join(lines)
