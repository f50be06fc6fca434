"""Which finished runs under RUNS are made from this cache and from what lies under RUNS now; which are stale, and why. No torch."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cache_schema import Cache
from cache_schema.errors import CspineError
from cache_schema.tables import read_table, table_meta
from trainer.leakage import exposure, lineage
from trainer.runs.files import CONFIG_FILE, EXPOSURE_FILE, MODEL_FILE, PREDICTIONS
from trainer.runs.identity import prediction_settings, run_key
from trainer.runs.inputs import Inputs
from trainer.runs.predictions import held_out_runs, require_predictions
from trainer.runs.recorded import Recorded, recorded_of
from trainer.runs.run_names import RunName, run_name
from trainer.runs.weights import require_whole
from trainer.settings.settings import Settings

WORDS = {
    "pixel_hash": "other pixels",
    "studies": "other pixels, studies or folds",
    "segmentations": "other segmentations",
    "labels": "other labels",
    "boxes": "other boxes",
    "pseudo": "other pseudo labels",
    "backbone": "another backbone",
    "eval_stride": "another data.eval_stride",
}
"""by the names of the digests, and of the settings of a prediction, that a run keeps"""
OTHER_FOLDS, OTHER_PIXELS = "other folds or studies", "other pixels"


class Found(NamedTuple):
    """Held-out predictions under RUNS."""

    run_dir: Path
    why: str = ""
    """of stale ones"""
    checked: bool = True
    """false: they came without the run that made them, so that nothing says what from"""
    ids: frozenset[str] = frozenset()
    gone: tuple[str, ...] = ()
    """names of the inputs that are no longer there: what the run recorded of them stands for them"""


class Pool(NamedTuple):
    """What a stage's runs may be pooled to."""

    run_dirs: tuple[Path, ...]
    lines: tuple[str, ...]
    """on each run that is left out or could not be checked"""
    problem: str
    """why there can be no table of them; "" where there can"""
    mixed: bool
    """whether that is so because only a part of them is as it should be"""


class FinishedRuns:
    """Judges runs by their own settings against one cache. Opens the weights' metadata, never the tensors.

    Stages are asked for in their order, each once the tables before it are made: a run that read a table is judged by
    the table as it is then. outdated: tables that could not be made anew; what has read them is stale too.
    """

    def __init__(self, out: Path, cache: Cache):
        self.out, self.cache = out, cache
        self.outdated: set[Path] = set()
        self._weights: dict[Path, list[str]] = {}

    def pool(self, stage: str) -> Pool:
        found = [self.judged(run_dir) for run_dir in held_out_runs(self.out) if RunName.of(run_dir).stage == stage]
        stale, fit = [each for each in found if each.why], [each for each in found if not each.why]
        lines = [f"{run_name(each.run_dir)}: stale, left out: {each.why}" for each in stale]
        lines += [
            f"{run_name(each.run_dir)}: not checked: nothing beside its predictions says what they were made from"
            for each in fit
            if not each.checked
        ]
        lines += [
            f"{run_name(each.run_dir)}: what it was made from is gone, and taken to be what it was: {', '.join(each.gone)}"
            for each in fit
            if each.gone
        ]
        known = {str(fold) for fold in self.cache.labels["fold"].dropna().astype(int)}
        problem = _without(stale, fit, known) or _held_out_twice(fit)
        return Pool(tuple(each.run_dir for each in fit), tuple(lines), problem, bool(problem and fit))

    def judged(self, run_dir: Path) -> Found:
        try:
            table, footer = read_table(run_dir / PREDICTIONS), table_meta(run_dir / PREDICTIONS)["inputs"]
            require_predictions(table, RunName.of(run_dir).stage)
            ids = frozenset(table["id"].astype(str))
            recorded = recorded_of(run_dir)
            if recorded is None:
                return Found(run_dir, self._why_elsewhere(run_dir, footer), checked=False, ids=ids)
            settings = recorded.settings(self.cache.path, self.out)
            if run_name(settings.run_dir) != run_name(run_dir):
                return Found(run_dir, f"it is {run_name(settings.run_dir)} by its settings", ids=ids)
            gone = tuple(_standing(settings, recorded.inputs))
            return Found(run_dir, self._why(run_dir, settings, recorded, footer, ids), ids=ids, gone=gone)
        except CspineError as error:
            if isinstance(error.__context__, OSError) and not isinstance(error.__context__, FileNotFoundError):
                raise  # what cannot be read just now may be as it should be
            return Found(run_dir, _in_short(error))

    def _why(
        self, run_dir: Path, settings: Settings, recorded: Recorded, footer: Mapping[str, str], ids: frozenset[str]
    ) -> str:
        """What the run's weights, or its predictions, were made from and is not what there is now; "" where all is."""
        inputs = Inputs(settings, self.cache, _standing(settings, footer | recorded.inputs))
        if ids != set(inputs.eval_ids()):
            return OTHER_FOLDS
        weights = self._weights_changed(run_dir)
        changed = _differing(inputs.prediction_digests() | prediction_settings(settings), footer)
        if footer.get("run") != recorded.key:
            return "its predictions are not of its weights"
        words = [*changed, *weights]
        if "studies" in changed:  # the same ones, by their ids
            words = [OTHER_PIXELS if word == "studies" else word for word in words]
        return ", ".join(dict.fromkeys(WORDS.get(word, word) for word in words))

    def _weights_changed(self, run_dir: Path) -> list[str]:
        """Names of what a run's weights were made from and is not what there is now."""
        if run_dir not in self._weights:
            recorded = recorded_of(run_dir)
            self._weights[run_dir] = [] if recorded is None else self._changed(run_dir, recorded)
        return self._weights[run_dir]

    def _changed(self, run_dir: Path, recorded: Recorded) -> list[str]:
        settings = recorded.settings(self.cache.path, self.out)
        inputs = Inputs(settings, self.cache, _standing(settings, recorded.inputs))
        now = inputs.training_digests()
        changed = _differing(now, recorded.inputs)
        outdated = {path.resolve() for path in self.outdated}
        for name in ("boxes", "pseudo"):
            path = getattr(settings, name)
            if name in now and path is not None and path.resolve() in outdated:
                changed.append(name)
        if "backbone" in now and settings.backbone.is_dir() and self._weights_changed(settings.backbone):
            changed.append("backbone")
        if recorded.version not in (None, str(settings.facts.version)):
            changed.append(f"version {recorded.version} of its stage")
        file = settings.model.weights_file
        if not changed and (file is None or file.is_file()) and run_key(settings, inputs) != recorded.key:
            if (run_dir / MODEL_FILE).is_file():
                require_whole(run_dir / MODEL_FILE)
            changed.append("another version of its stage, or other settings than its config.yaml has")
        return changed

    def _why_elsewhere(self, run_dir: Path, footer: Mapping[str, str]) -> str:
        """Of predictions without their run: by what they state themselves, which may be nothing."""
        fold = footer.get("fold", "")
        known = {str(each) for each in self.cache.labels["fold"].dropna().astype(int)}
        if not fold.isdecimal() or "studies" not in footer:
            return ""
        if fold not in known:
            return OTHER_FOLDS
        name = RunName.of(run_dir)
        settings = Settings(stage=name.stage, variant=name.variant, cache=self.cache.path, out=self.out, fold=int(fold))
        changed = _differing(Inputs(settings, self.cache).held_out_digests(), footer)
        return ", ".join(WORDS[name] for name in changed)


def seen_by(run_dir: Path) -> pd.DataFrame:
    """The exposure of a run under RUNS; `unknown` of predictions that lie there by themselves. Raises CacheError where it is
    gone or damaged."""
    if not any((run_dir / name).exists() for name in (CONFIG_FILE, MODEL_FILE, EXPOSURE_FILE)):
        return lineage.unknown(run_name(run_dir), PREDICTIONS)
    return exposure.of_finished(run_dir)


def _standing(settings: Settings, recorded: Mapping[str, str]) -> dict[str, str]:
    """The recorded digests of what is no longer where the settings say."""
    paths = {"boxes": settings.boxes, "pseudo": settings.pseudo}
    paths["backbone"] = None if settings.backbone is None else settings.backbone / MODEL_FILE
    gone = [name for name, path in paths.items() if path is not None and str(path) != "cache" and not path.exists()]
    return {name: recorded[name] for name in gone if name in recorded}


def _differing(now: Mapping[str, str], recorded: Mapping[str, str]) -> list[str]:
    return [name for name, digest in now.items() if name in recorded and recorded[name] != digest]


def _without(stale: list[Found], fit: list[Found], known: set[str]) -> str:
    """What the stage, or a variant that is not stale as a whole, would lack where the stale ones are left out.

    known: the folds of the cache. Nothing is in the place of a run of another one, nor could be made."""
    if stale and not fit:
        return f"all {len(stale)} runs are stale"
    folds, variants = {_fold(each) for each in fit}, {_variant(each) for each in fit}
    pairs = {(_variant(each), _fold(each)) for each in fit}
    missing = [
        each
        for each in stale
        if _fold(each) in known
        if _fold(each) not in folds or (_variant(each) in variants and (_variant(each), _fold(each)) not in pairs)
    ]
    return f"nothing fits in the place of {', '.join(run_name(each.run_dir) for each in missing)}" if missing else ""


def _held_out_twice(fit: list[Found]) -> str:
    by_study: dict[str, set[str]] = defaultdict(set)
    for each in fit:
        for id in each.ids:
            by_study[id].add(_fold(each))
    twice = {id: sorted(folds) for id, folds in by_study.items() if len(folds) > 1}
    if not twice:
        return ""
    first = min(twice)
    return f"{len(twice)} studies are held out by two folds, first {first} by {' and '.join(twice[first][:2])}"


def _variant(found: Found) -> str:
    return found.run_dir.parent.name


def _fold(found: Found) -> str:
    return RunName.of(found.run_dir).fold


def _in_short(error: CspineError) -> str:
    """Without what to do: that is the same for all stale runs."""
    where = "" if error.where is None else f"{Path(str(error.where)).name} "
    return f"{where}{error.what}"
