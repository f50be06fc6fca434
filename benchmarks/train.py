"""The cost of a training step, for each variant on the available device: `python -m benchmarks.train`.

Alternates between batches of the real loader and one batch kept on the device; the ratio is the cost of loading. Settings
`section.key=value` change the variants, which have full size on a GPU, and on a CPU small sizes that end within minutes.
The first lines of the output tell what was run.
"""

import argparse
import itertools
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.hours import estimate, not_measured, simulated, with_earlier
from benchmarks.matrix import PLAN, forward_flops
from benchmarks.phantoms import write_inputs
from benchmarks.rounds import Cost, Ratio, kept_file, machine, print_and_keep, run_rounds, table
from trainer.data.order import Training
from trainer.inference import predict
from trainer.loop import Run
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_file, stage_names
from trainer.tuning.autotune import wait
from trainer.tuning.tuning import tune

SMALL = "model.name=test_efficientnet_gn model.chunk=8 data.size=64 data.frames=12 data.eval_stride=8 train.batch=4 train.micro_batch=2"
"""defaults on a CPU; they tell nothing about the cost of the real networks"""
AIMS = {"triplets": 0.95, "windows": 0.99, "studies": 0.99}
"""of the speed with a kept batch, at full size on a GPU only"""
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Measured:
    settings: Settings
    layout: str
    real: list[float]
    """seconds per optimiser step, one value per round"""
    kept: list[float]
    images: int
    """in one step, on average"""
    flops: float
    """of the CNN in one step: three times its forward pass, or once if it is frozen; without LSTM and heads, under 1 %"""
    peak_gib: float
    predicted: float
    """images per second in prediction"""

    @property
    def name(self) -> str:
        return f"{self.settings.stage} {self.settings.variant}"

    @property
    def pace(self) -> float:
        """Images per second."""
        return self.images / median(self.real)

    def line(self) -> str:
        step, kept = median(self.real), median(self.kept)
        return f"{self.name}: {step:.3g} s per step, {kept:.3g} on a kept batch, {self.pace:.4g} images/s, {self.predicted:.4g} predicted/s"

    @property
    def rate(self) -> float:
        """Floating-point operations per second."""
        return self.flops / median(self.real)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    known = [f"{stage}:{variant}" for stage in stage_names() for variant in stage_file(stage)[1]]
    parser.add_argument(
        "--variants", nargs="+", choices=known, default=known, metavar="STAGE:VARIANT", help="all, if left out"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="least optimiser steps per round; the loader has up to two batches ready at its start",
    )
    parser.add_argument("--seconds", type=float, default=2, help="least seconds per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--studies", type=int, default=16, help="phantoms to make, half of them to train on")
    parser.add_argument("--slices", type=int, help="of each phantom")
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    parser.add_argument(
        "--costs", type=Path, metavar="FILE", help="write seconds per run, for `costs=` of trainer.plan"
    )
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="settings; cache=, boxes= and pseudo= of real data"
    )
    given = parser.parse_args(words)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    precision = [word.partition("=")[2] for word in given.words if word.startswith("train.precision=")]
    name = "-".join([*(gpu or "").lower().split(), *precision])
    given.rates = kept_file(f"rates-{name}", ".json") if given.keep and gpu else None
    some = [] if given.variants == known else [each.replace(":", "-") for each in given.variants]
    print_and_keep(parts(given, gpu), "-".join(filter(None, ["train", name, *some])), given.keep)
    return 0


def parts(given: argparse.Namespace, gpu: str | None) -> Iterator[str]:
    """The report in parts. Writes given.costs at the end."""
    slices = given.slices or (352 if gpu else 40)
    chosen = given.words if gpu else [*SMALL.split(), *given.words]
    variants = [name.split(":") for name in given.variants]
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        if not any(word.startswith("cache=") for word in given.words):
            chosen = [*write_inputs(Path(folder), given.studies, slices), *chosen]
            yield f"{given.studies} phantoms of {slices} slices"
        yield f"{gpu or 'no GPU'}; {machine()}; torch {torch.__version__}"
        yield f"settings: {' '.join(given.words) or 'those in configs'}"
        if not gpu:
            yield f"SMALL SIZES by default, because there is no GPU: {SMALL}"
        found = []
        for stage, variant in variants:
            settings = settings_of(stage, variant, chosen, Path(folder))
            found.append(measure(settings, given.steps, given.seconds, given.rounds))
            yield found[-1].line()
        yield "\n" + report(found, matrix_flops("cuda" if gpu else "cpu", found[0].settings))
        rates = {each.name: each.rate for each in found}
        if given.rates and all(is_full_size(each.settings) for each in found):
            rates = with_earlier(rates, given.rates)
        if unknown := not_measured(rates):
            yield f"no estimate for {PLAN.name}{' and no costs' * bool(given.costs)}: not measured: {', '.join(unknown)}"
            return
        yield estimate(rates)
        if not all(is_full_size(each.settings) for each in found):
            yield "only an order of magnitude: small networks and images have other rates than the real ones"
        yield simulated(rates, given.costs)


def settings_of(stage: str, variant: str, words: list[str], out: Path) -> Settings:
    """A variant's settings without any weights, pretrained or of a stage-3 run."""
    needs = [f"stage={stage}", f"variant={variant}", f"out={out}", "fold=0", "tracker=none", "model.pretrained=false"]
    settings = load([*needs, f"backbone={out}", *words], must_exist=False)
    return settings.model_copy(update={"backbone": None})


def measure(settings: Settings, steps: int, seconds: float, rounds: int) -> Measured:
    """Alternates steps on real batches and on a kept one, then predicts the held-out fold."""
    with closing(Run(settings, Inputs(settings), "")) as run:
        return _measured(run, steps, seconds, rounds)


def _measured(run: Run, steps: int, seconds: float, rounds: int) -> Measured:
    settings, accelerator, train = run.settings, run.accelerator, run.settings.train
    on_gpu = accelerator.device.type == "cuda"
    ids = run.inputs.train_ids()
    items, network = run.stage.train_items(ids), run.stage.model()
    if len(items) < train.batch:
        raise SystemExit(f"{settings.stage}: {len(items)} items for a step of {train.batch}; give more by --studies")
    tuning = tune(run, network, items)
    model, optimiser, micro, passes = run.prepare(network, tuning)
    model.train()
    schedule = Training(items, settings.seed, train.batch, by_block=run.by_block)
    loader = run.loader(schedule, micro, run.augmentation(), ids, targets=True, keep_chunks=run.by_block)
    batches = iter(loader)
    shown = [0, 0]
    real, first = _counting(batches, shown), next(batches)
    kept = itertools.repeat(first)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def cost(source: Iterator, steps: int) -> Cost:
        wait(accelerator.device)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            run.step(model, optimiser, source, passes, 0, 1)
        wait(accelerator.device)
        return Cost((time.process_time() - cpu) * 1e3 / steps, (time.perf_counter() - wall) * 1e3 / steps)

    cost(kept, 1)
    steps = max(steps, math.ceil(seconds * 1e3 / cost(kept, 1).wall_ms))
    costs = run_rounds({"real": lambda: cost(real, steps), "kept": lambda: cost(kept, steps)}, rounds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else _resident_gib()
    batches.close()
    each = shown[0] / shown[1] * passes
    forward = forward_flops(settings.model.name, settings.data.size)
    if on_gpu:
        _prediction_rate(run, model)  # the first compiles, or tries algorithms out
    return Measured(
        settings,
        f"{tuning.micro_batch} at once" + ", channels last" * tuning.channels_last + ", compiled" * tuning.compiled,
        [cost.wall_ms / 1e3 for cost in costs["real"]],
        # as if the kept batch had as many images as the others have on average
        [cost.wall_ms / 1e3 * each / (len(first.images) * passes) for cost in costs["kept"]],
        round(each),
        each * forward * (3 if settings.facts.backbone is None else 1),
        peak,
        _prediction_rate(run, model),
    )


def _counting(batches: Iterator, shown: list[int]) -> Iterator:
    """The same batches; counts images and batches in `shown`."""
    for batch in batches:
        shown[0] += len(batch.images)
        shown[1] += 1
        yield batch


def _prediction_rate(run: Run, model: nn.Module) -> float:
    """Images per second of the trainer's own prediction, with its tables."""
    seen = []
    watch = run.accelerator.unwrap_model(model).backbone.register_forward_hook(
        lambda module, given, made: seen.append(len(made))
    )
    began = time.perf_counter()
    predict(run, model)
    watch.remove()
    return sum(seen) / (time.perf_counter() - began)


def matrix_flops(device: str, settings: Settings) -> float:
    """Floating-point operations per second of a large matrix product, in the precision of training."""
    half = device == "cuda" and settings.train.precision != "no"
    dtype = {"bf16": torch.bfloat16}.get(settings.train.precision, torch.float16) if half else torch.float32
    side = MATRIX_SIDE[device]
    a = torch.randn(side, side, device=device).to(dtype)
    took = []
    for _ in range(10):
        wait(torch.device(device))
        began = time.perf_counter()
        a @ a
        wait(torch.device(device))
        took.append(time.perf_counter() - began)
    return 2 * side**3 / min(took)


def report(found: list[Measured], reachable: float) -> str:
    rows = []
    for each in found:
        aimed = torch.cuda.is_available() and is_full_size(each.settings)
        aims = {"at_least": AIMS[each.settings.facts.items]} if aimed else {}
        _, value, spread, aim, met = Ratio.of("", each.kept, each.real, **aims).row()
        columns = {
            "variant": each.name,
            "backbone": each.settings.model.name,
            "items a step": f"{each.settings.train.batch} ({each.layout})",
            "s/step": f"{median(each.real):.3g}",
            "images/s": f"{each.pace:.4g}",
            "TFLOP/s": f"{each.rate / 1e12:.3g}",
            "of matmul": f"{each.rate / reachable:.0%}",
            "peak GiB": f"{each.peak_gib:.1f}",
            "predicted/s": f"{each.predicted:.4g}",
            "real over kept": f"{value} ({spread})",
            "aim": f"{aim} {met}".strip(),
        }
        rows.append(columns)
    size = found[0].settings.data.size
    title = f"Training steps, size {size}; a matrix product reaches {reachable / 1e12:.3g} TFLOP/s"
    return table(title, list(rows[0]), [list(row.values()) for row in rows])


def is_full_size(settings: Settings) -> bool:
    """Whether backbone and image size are those in configs."""
    words = [f"cache={settings.cache}", "boxes=b", "pseudo=p"]
    full = settings_of(settings.stage, settings.variant, words, settings.out)
    return (settings.model.name, settings.data.size) == (full.model.name, full.data.size)


def _resident_gib() -> float:
    """This process's peak memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
