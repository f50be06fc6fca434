"""Which finished runs under RUNS are up to date with a cache and the tables under RUNS, and why others are stale. Without torch."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cache_schema import Cache
from cache_schema.errors import CspineError
from cache_schema.tables import content_digest, read_table, table_meta
from trainer.leakage import exposure, lineage
from trainer.leakage.groups import Exposure, pair_frame
from trainer.runs.damaged import is_read_error
from trainer.runs.file_names import CONFIG_FILE, EXPOSURE_FILE, MODEL_FILE, PREDICTIONS
from trainer.runs.held_out import held_out_runs, require_predictions
from trainer.runs.identity import prediction_settings, run_key
from trainer.runs.inputs import Inputs, folds_in, labels_of
from trainer.runs.recorded import Recorded, recorded_of
from trainer.runs.run_names import RunName, run_name
from trainer.runs.sources import digests_of_missing
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
"""reasons by the names of recorded digests and prediction settings"""
OTHER_FOLDS, OTHER_PIXELS = "other folds or studies", "other pixels"


class Found(NamedTuple):
    """A run with held-out predictions under RUNS."""

    run_dir: Path
    why: str = ""
    """reason why it is stale; "" if it is not"""
    checked: bool = True
    """false for predictions without their run, whose inputs are unknown"""
    ids: frozenset[str] = frozenset()
    gone: tuple[str, ...] = ()
    """names of sources that no longer exist, for which the recorded digests are used"""

    @property
    def note(self) -> str:
        """What to report about the run; "" if nothing."""
        if self.why:
            return f"{run_name(self.run_dir)}: stale, left out: {self.why}"
        if not self.checked:
            return f"{run_name(self.run_dir)}: not checked: its predictions do not state their inputs"
        if self.gone:
            names = ", ".join(self.gone)
            return f"{run_name(self.run_dir)}: its inputs no longer exist and are assumed unchanged: {names}"
        return ""

    @property
    def variant(self) -> str:
        return self.run_dir.parent.name

    @property
    def fold(self) -> str:
        return RunName.of(self.run_dir).fold


class Pool(NamedTuple):
    """The runs of a stage whose predictions may be pooled."""

    run_dirs: tuple[Path, ...]
    lines: tuple[str, ...]
    """on runs that are left out, or not fully checked"""
    problem: str
    """why no table can be made of them; "" if one can"""
    mixed: bool
    """whether the reason is that only some of them are up to date"""


class FinishedRuns:
    """Compares runs, by their recorded settings, with one cache. Reads metadata of weights, never tensors.

    Call `pool` for the stages in order, each after the tables of those before it are made. outdated: tables that could not
    be updated; runs made from them are stale too.
    """

    def __init__(self, out: Path, cache: Cache):
        self.out, self.cache = out, cache
        self.outdated: set[Path] = set()
        self._weights: dict[Path, list[str]] = {}

    def pool(self, stage: str) -> Pool:
        found = [self.judged(run_dir) for run_dir in held_out_runs(self.out) if RunName.of(run_dir).stage == stage]
        stale, fit = [each for each in found if each.why], [each for each in found if not each.why]
        problem = _incomplete(stale, fit, self._folds()) or _held_out_twice(fit)
        lines = tuple(each.note for each in found if each.note)
        return Pool(tuple(each.run_dir for each in fit), lines, problem, bool(problem and fit))

    def _folds(self) -> set[str]:
        return set(map(str, folds_in(labels_of(self.cache))))

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
            gone = tuple(digests_of_missing(dict(settings), recorded.inputs))
            return Found(run_dir, self._why(run_dir, settings, recorded, footer, ids), ids=ids, gone=gone)
        except CspineError as error:
            if is_read_error(error):
                raise  # the run may be up to date
            return Found(run_dir, _in_short(error))

    def _why(
        self, run_dir: Path, settings: Settings, recorded: Recorded, footer: dict[str, str], ids: frozenset[str]
    ) -> str:
        """What has changed of the inputs of the run's weights or predictions; "" if nothing."""
        inputs = Inputs(settings, self.cache, digests_of_missing(dict(settings), {**footer, **recorded.inputs}))
        if ids != set(inputs.eval_ids()):
            return OTHER_FOLDS
        weights = self._weights_changed(run_dir)
        changed = _differing(inputs.prediction_digests() | prediction_settings(settings), footer)
        if footer.get("run") != recorded.key:
            return "its predictions are not of its weights"
        words = [*changed, *weights]
        if "studies" in changed:  # the ids are the same
            words = [OTHER_PIXELS if word == "studies" else word for word in words]
        return ", ".join(dict.fromkeys(WORDS.get(word, word) for word in words))

    def _weights_changed(self, run_dir: Path) -> list[str]:
        """Names of the inputs of a run's weights that have changed."""
        if run_dir not in self._weights:
            recorded = recorded_of(run_dir)
            self._weights[run_dir] = [] if recorded is None else self._changed(run_dir, recorded)
        return self._weights[run_dir]

    def _changed(self, run_dir: Path, recorded: Recorded) -> list[str]:
        settings = recorded.settings(self.cache.path, self.out)
        inputs = Inputs(settings, self.cache, digests_of_missing(dict(settings), recorded.inputs))
        now = inputs.training_digests()
        changed = _differing(now, recorded.inputs)
        outdated = {path.resolve() for path in self.outdated}
        for name, path in settings.sources().items():
            if path is not None and path.resolve() in outdated:
                changed.append(name)
            if name == "backbone" and path is not None and path.is_dir() and self._weights_changed(path):
                changed.append(name)
        if recorded.version not in (None, str(settings.facts.version)):
            changed.append(f"version {recorded.version} of its stage")
        file = settings.model.weights_file
        if not changed and (file is None or file.is_file()) and run_key(settings, inputs) != recorded.key:
            if (run_dir / MODEL_FILE).is_file():
                require_whole(run_dir / MODEL_FILE)
            changed.append("another version of its stage, or settings other than those in config.yaml")
        return changed

    def _why_elsewhere(self, run_dir: Path, footer: Mapping[str, str]) -> str:
        """The same for predictions without their run, from the metadata of the table, if there is any."""
        fold = footer.get("fold", "")
        if not fold.isdecimal() or "studies" not in footer:
            return ""
        if fold not in self._folds():
            return OTHER_FOLDS
        name = RunName.of(run_dir)
        settings = Settings(stage=name.stage, variant=name.variant, cache=self.cache.path, out=self.out, fold=int(fold))
        changed = _differing(Inputs(settings, self.cache).held_out_digests(), footer)
        return ", ".join(WORDS[name] for name in changed)


def seen_by(run_dir: Path) -> Exposure:
    """The exposure of a run under RUNS; `unknown` for predictions without their run. Raises CacheError if it is missing or
    damaged."""
    if not any((run_dir / name).exists() for name in (CONFIG_FILE, MODEL_FILE, EXPOSURE_FILE)):
        return lineage.unknown(run_name(run_dir), PREDICTIONS)
    return exposure.of_finished(run_dir)


def exposure_digest(run_dir: Path) -> str:
    """The digest of what `seen_by` gives. Raises as it does."""
    seen, path = seen_by(run_dir), run_dir / EXPOSURE_FILE
    return table_meta(path)["digest"] if path.is_file() else content_digest(pair_frame(seen))


def _differing(now: Mapping[str, str], recorded: Mapping[str, str]) -> list[str]:
    return [name for name, digest in now.items() if name in recorded and recorded[name] != digest]


def _incomplete(stale: list[Found], fit: list[Found], known: set[str]) -> str:
    """Which stale runs the stage, or a variant with other runs, cannot do without.

    known: the folds of the cache. Runs of other folds are not needed.
    """
    if stale and not fit:
        return f"all {len(stale)} runs are stale"
    folds, variants = {each.fold for each in fit}, {each.variant for each in fit}
    pairs = {(each.variant, each.fold) for each in fit}
    missing = [
        each
        for each in stale
        if each.fold in known
        if each.fold not in folds or (each.variant in variants and (each.variant, each.fold) not in pairs)
    ]
    return f"no current run replaces {', '.join(run_name(each.run_dir) for each in missing)}" if missing else ""


def _held_out_twice(fit: list[Found]) -> str:
    by_study: dict[str, set[str]] = defaultdict(set)
    for each in fit:
        for id in each.ids:
            by_study[id].add(each.fold)
    twice = {id: sorted(folds) for id, folds in by_study.items() if len(folds) > 1}
    if not twice:
        return ""
    first = min(twice)
    return f"{len(twice)} studies are held out by two folds, first {first} by {' and '.join(twice[first][:2])}"


def _in_short(error: CspineError) -> str:
    """The error without its advice."""
    where = "" if error.where is None else f"{Path(str(error.where)).name} "
    return f"{where}{error.what}"
