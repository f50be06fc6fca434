"""One run of one stage: `accelerate launch -m trainer.run stage=... cache=CACHE out=RUNS`, or without the launcher in one process.

Checks settings and recognises a finished run before it imports torch.
"""

import sys
from contextlib import closing
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # started as a file: its neighbours `data` and `stages` must not become top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once, end_with_launcher

    answer_at_once("interrupted")
    end_with_launcher()

from cache_schema import Cache
from trainer.process import machines
from trainer.process.command import is_main, one_of, say, serve
from trainer.process.ending import leave
from trainer.settings.keyvalue import assignments
from trainer.settings.layers import load, shown
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_names

HELP = f"""usage: accelerate launch -m trainer.run stage={"|".join(stage_names())} [variant=NAME] cache=CACHE out=RUNS
           [mode=train|predict] [show=true] [fold=0|all] [seed=1] [boxes=TABLE|cache] [pseudo=TABLE] [backbone=RUN] [weights=RUN]
           [split=held_out|all] [micro_batch=auto|N] [deterministic=true] [tracker=tensorboard|none] [config=FILE] [section.key=value ...]

In one process, `trainer run ...` does the same without the launcher. trainer/run.py may also be started as a file.
Settings: defaults < configs/<stage>.yaml < its variant < config=FILE < command line; sections are model, data, augment, train.
show=true prints all settings of a run and stops. trainer/settings/settings.py documents them.
Exit status: 0 done, 1 a check failed, 2 a wrong setting or nothing to do."""


def run(settings: Settings, cache: Cache | None = None) -> Path:
    """Trains or predicts, unless that is already done. Returns the run's folder. Raises CspineError.

    cache: the open cache of these settings, so that several runs share one index.
    """
    from trainer.leakage import exposure
    from trainer.runs.agreement import done_for_all
    from trainer.runs.identity import check_weights, run_key
    from trainer.runs.inputs import Inputs
    from trainer.runs.lease import hold_run
    from trainer.runs.run_folder import remove_checkpoints, require_files
    from trainer.runs.run_names import run_name

    inputs, predicting = Inputs(settings, cache), settings.mode == "predict"
    weights = settings.weights or settings.run_dir
    key = check_weights(settings, inputs.cache.pixel_hash, weights) if predicting else run_key(settings, inputs)
    inputs.require_unchanged()
    require_files(settings.run_dir)
    if done_for_all(settings, inputs, key):
        if not predicting and is_main():
            remove_checkpoints(settings.run_dir)
        say(f"already done: {settings.run_dir}")
        return settings.run_dir
    seen = exposure.of_run(settings, inputs)
    exposure.check_scorable(settings, inputs, seen)

    from trainer.loop import Run

    with hold_run(settings.out, run_name(settings.run_dir)), closing(Run(settings, inputs, key, seen)) as task:
        task.predict_from(weights) if predicting else task.train()
    return settings.run_dir


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to resume from the last checkpoint")


def _main(words: list[str]) -> None:
    asked = [word for word in words if word.lstrip("-").startswith("show=")]
    words = [word for word in words if word not in asked]
    if one_of(assignments(asked), "show", ("false", "true")) == "true":
        say(shown(words))
    else:
        with machines.together():
            run(load(words))


def close() -> None:
    """Destroys the process group, if there is one."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if not status:
        close()  # not after a failure: other processes may still wait for this one
    leave(status)
