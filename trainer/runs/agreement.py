"""What the processes of a run over several machines must have in common, and what the main one decides for all.

A network file system may show each machine another state of the run's folder.
"""

import hashlib
import json

from trainer.process import machines
from trainer.runs.identity import identity_settings, is_done, prediction_inputs
from trainer.runs.inputs import Inputs
from trainer.runs.weights import version_of
from trainer.settings.settings import Settings

PACKAGES = ("cspine", "torch", "timm", "accelerate")
"""whose versions must be the same on all machines, and are kept with the weights"""
DECIDING = {"mode", "split", "fold", "seed"}


def done_for_all(settings: Settings, inputs: Inputs, key: str) -> bool:
    """`is_done`, as the main process sees it. Raises UsageError if the machines differ in what the run depends on."""
    if machines.joined is None:
        return is_done(settings, inputs, key)
    done = is_done(settings, inputs, key) if machines.joined.rank == 0 else None
    return machines.joined.agree(_facts(settings, inputs, key), done)


def _facts(settings: Settings, inputs: Inputs, key: str) -> dict[str, str]:
    asked = settings.dump()
    values = [identity_settings(settings), {name: asked[name] for name in DECIDING}, settings.train.evaluate_every]
    return {
        **{f"the version of {name}": version_of(name) for name in PACKAGES},
        "pixel_hash of the cache": inputs.cache.pixel_hash,
        "the digest of the settings": _digest(values),
        "the digest of studies, labels and tables": _digest(prediction_inputs(settings, inputs, key)),
    }


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
