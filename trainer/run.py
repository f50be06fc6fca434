"""One run of one stage: `accelerate launch trainer/run.py stage=... cache=CACHE out=RUNS`, or without the launcher for one process.

Settings are checked, and a finished run is recognised, before torch is imported.
"""

import os
import sys
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # started as a file: its neighbours `config`, `data` and `stages` must not become top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cache_schema.errors import CspineError, UsageError
from trainer.config import STAGES, Settings, load

HELP = f"""usage: accelerate launch trainer/run.py stage={"|".join(STAGES)} [variant=NAME] cache=CACHE out=RUNS
           [mode=train|predict] [fold=0|all] [seed=1] [boxes=TABLE|cache] [pseudo=TABLE] [backbone=RUN] [weights=RUN]
           [split=held_out|all] [micro_batch=N] [deterministic=true] [tracker=tensorboard|none] [config=FILE] [section.key=value ...]

On one CPU, or one GPU, `python trainer/run.py ...` does the same without the launcher.
Settings: defaults < configs/<stage>.yaml < its variant < config=FILE < command line; sections are model, data, augment, train.
Exit status: 0 done, 1 a check failed, 2 a wrong setting or nothing to do."""


def run(settings: Settings) -> Path:
    """Trains or predicts, or returns at once where that is already done. Returns the run's folder. Raises CspineError."""
    from trainer.identity import check_weights, is_done, run_key
    from trainer.inputs import Inputs

    inputs = Inputs(settings)
    predicting = settings.mode == "predict"
    weights = settings.weights or settings.run_dir
    key = check_weights(settings, inputs, weights, stage=settings.stage) if predicting else run_key(settings, inputs)
    if is_done(settings, inputs, key):
        say(f"already done: {settings.run_dir}")
        return settings.run_dir

    from trainer.loop import Run

    task = Run(settings, inputs, key)
    if predicting:
        task.predict_from(weights)
    else:
        task.train()
    return settings.run_dir


def say(line: str, file: object = None) -> None:
    """Once, from the main process of however many there are."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=file, flush=True)


def main(words: list[str]) -> int:
    if not words or {"-h", "--help", "help"} & set(words):
        say(HELP)
        return 0 if words else 2
    try:
        run(load(words))
    except UsageError as error:
        say(f"error: {error}", sys.stderr)
        return error.exit_status
    except CspineError as error:  # what one process alone may have met
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from the last checkpoint", sys.stderr)
        return 130
    return 0


def close() -> None:
    """Lets the processes of a launch part in good order, whatever was imported."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    close()
    sys.exit(status)
