"""`trainer doctor RUN_OR_CACHE`: what holds a training back on this machine, and which setting changes it."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_schema.errors import UsageError, did_you_mean_path
from cache_schema.layout import GROUP
from cache_schema.store_path import place_of
from trainer.process.command import say, serve, split_words
from trainer.process.ending import leave
from trainer.runs.file_names import CONFIG_FILE
from trainer.runs.identity import recorded_config
from trainer.settings.keyvalue import merge, parse_assignments, whole
from trainer.settings.layers import full_name, load
from trainer.settings.settings import Settings, check_keys, validate
from trainer.settings.stage_registry import stage_names

HELP = f"""usage: trainer doctor RUN [cache=CACHE] [boxes=TABLE] [pseudo=TABLE] [seconds=20] [section.key=value ...]
       trainer doctor CACHE stage={"|".join(stage_names())} [variant=NAME] [boxes=TABLE] [pseudo=TABLE] [seconds=20] [section.key=value ...]

Trains for a while on this machine and writes nothing. Prints how long a training item takes to read, decode, stretch, augment,
warp and copy in one process, how long a step computes and waits for images, which of these holds the training back, and the settings
that change it. Give such a setting to try it: trainer doctor RUN data.workers=4.
RUN       a folder with config.yaml: its stage, variant, settings, cache and tables. cache=, boxes= and pseudo= name them where
          they have moved.
CACHE     with the settings of a run, as for trainer run. A backbone is not needed: its weights do not change the time.
seconds=  for each of the two measurements, about.
Exit status: 0 measured, 1 something is damaged, 2 a wrong setting or nothing to train on."""

MOST_SECONDS = 3600
SECTIONS = ("model.", "data.", "augment.", "train.")
OF_A_RUN = ("stage", "variant", "fold", "seed", "config")
"""what a run has decided"""
TOP = (*OF_A_RUN, "cache", "boxes", "pseudo", "micro_batch")


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted")


def _main(words: list[str]) -> None:
    place, given = split_words(words, "RUN or CACHE", ("seconds", *TOP, *SECTIONS), ())
    seconds = whole(given.pop("seconds", "20"), "seconds", 1, MOST_SECONDS)
    with TemporaryDirectory(prefix="doctor-") as out:
        settings = _settings(place, given, out)

        from trainer.doctor.diagnosis import diagnose

        say(diagnose(settings, seconds))


def _settings(place: str, given: dict[str, str], out: str) -> Settings:
    """Those of a run or, for a cache, as given; without a backbone, and with a folder of their own to write to."""
    run, own = Path(place), {"out": out, "tracker": "none", "backbone": out}
    if (run / CONFIG_FILE).is_file():
        settings = _of_run(run, given, own)
    elif (place_of(place) / GROUP).is_file():
        words = {"cache": place} | own | given | {"model.pretrained": "false"}
        settings = load(f"{key}={value}" for key, value in words.items())
    else:
        do = did_you_mean_path(run.absolute()) if "://" not in place and not run.exists() else "see --help"
        expected = "a folder with config.yaml, or a cache"
        raise UsageError("is neither a run nor a cache", where=place, expected=expected, do=do)
    return settings.model_copy(update={"backbone": None})


def _of_run(run: Path, given: dict[str, str], own: dict[str, str]) -> Settings:
    for key in given:
        if key in OF_A_RUN:
            raise UsageError(f"{key} is fixed by the run", where=run, do="leave it out, or give the cache")
    words = parse_assignments(f"{full_name(key)}={value}" for key, value in given.items())
    check_keys(words)
    config = recorded_config(run)
    assert config is not None
    values = {name: value for name, value in config.items() if name in Settings.model_fields}
    no_weights = {"pretrained": False, "weights_file": None}
    return validate(merge(values, words, own, {"mode": "train", "model": no_weights}))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
