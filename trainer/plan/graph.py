"""A plan as a graph of runs and tables, with needs and commands. Pure: reads only the plan's own files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.errors import CspineError, UsageError
from cache_schema.store_path import Place
from trainer.runs.run_names import RunName, run_name, split_kind
from trainer.settings.keyvalue import assignments, given_twice, read_yaml, require_known, split_files, whole
from trainer.settings.layers import full_name, load, stage_layer
from trainer.settings.paths import beside
from trainer.settings.settings import is_path
from trainer.settings.stage_registry import CONFIGS, stage_class, stage_names
from trainer.tables.settings import TableSettings, table_settings

RUN_KEYS = ("stage", "variant", "folds", "seeds", "set", "processes")
CHOSEN = ("cache", "out", "mode", "split", "boxes", "pseudo", "backbone", "weights")
"""settings that follow from a run's place in the graph"""
OF_A_ROW = ("stage", "fold", "seed")
MOST_AT_A_TIME = 1024
PLAN_KEYS = ("runs", "config", "jobs", "tables", "costs")


@dataclass(frozen=True)
class Node:
    name: str
    output: Path
    """a run's folder, or a table's file"""
    needs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """a run's settings as `key=value`; empty for a table"""
    processes: int = 1
    """most GPUs for a run; the executor chooses how many"""

    @property
    def is_run(self) -> bool:
        return bool(self.words)

    @property
    def stage(self) -> str:
        """A run's stage; "" for a table."""
        return split_kind(self.kind)[0]

    @property
    def kind(self) -> str:
        """`<stage>-<variant>` of a run, or a table's name. Nodes of a kind cost the same."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Plan:
    nodes: tuple[Node, ...]
    """each after its needs"""
    jobs: int | None
    """simultaneous runs; None: one per GPU, one on a CPU"""
    tables: TableSettings
    costs: Mapping[str, Any]
    """from the plan's file, by node name, kind or stage"""

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def runs(self) -> list[Node]:
        return [node for node in self.nodes if node.is_run]


class Shared(NamedTuple):
    """What all runs of a plan share."""

    path: Path
    words: list[str]
    files: list[Path]
    """settings files of the plan; a run's own override them"""
    last_files: list[Path]
    """settings files of the command line, which override a run's own"""
    settings: dict[str, str]
    """from the command line, by full name"""

    def words_of(self, chosen: Mapping[str, Any], stage: str) -> list[str]:
        """A run's words. chosen: a row's `set:`, with paths relative to the plan's file."""
        own = _by_full_names({key: str(value) for key, value in chosen.items() if key != "config"})
        own = {key: beside(self.path, value) if is_path(key, value) else value for key, value in own.items()}
        named = split_files(str(chosen["config"]), self.path.parent) if "config" in chosen else []
        files = [*self.files, *named, *self.last_files]
        for file in files:
            for key in stage_layer(file, stage):
                _refuse_chosen(key, file, (*CHOSEN, *OF_A_ROW))
        config = [f"config={','.join(map(str, files))}"] if files else []
        return [*self.words, *config, *(f"{key}={value}" for key, value in {**own, **self.settings}.items())]


def _by_full_names(settings: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if (name := full_name(key)) in found:
            raise given_twice(f"{name}={found[name]}", f"{key}={value}")
        found[name] = value
    return found


def packaged_plans() -> dict[str, Path]:
    """name -> file of each plan that comes with the package."""
    return {path.stem: path for path in sorted((CONFIGS / "plan").glob("*.yaml"))}


def plan_file(word: str) -> Path:
    """A plan's file, or that of a packaged plan of this name. Raises UsageError for a name that is neither."""
    packaged = packaged_plans()
    if Path(word).name != word or Path(word).suffix or Path(word).exists():
        return Path(word)
    require_known(word, packaged, f"no plan {word}, neither a file nor one of the package's")
    return packaged[word]


def read_plan(path: Path, cache: Place, out: Path, extra: Iterable[str] = ()) -> Plan:
    """PLAN.yaml -> its graph. extra: `section.key=value` words for every run, `tables.key=value` for the tables.

    Raises UsageError for what does not fit.
    """
    content = read_yaml(path, "a plan")
    _check_keys(content, PLAN_KEYS, "a plan", path)
    thresholds = dict(_mapping(content.get("tables"), f"{path}, tables"))
    if not isinstance(content.get("config", ""), str):
        raise UsageError("config: is not a file name", where=path, expected="config: FILE or FILE,FILE")
    files = split_files(content["config"], path.parent) if "config" in content else []
    last_files: list[Path] = []
    given: dict[str, str] = {}
    for key, value in assignments(extra).items():
        if key in ("stage", "variant", "fold", "seed"):
            raise UsageError(f"{key}= cannot be the same for all runs of a plan", do=f"edit {path}")
        _refuse_chosen(key, path)
        if key == "config":
            last_files = split_files(value)
        elif key.startswith("tables."):
            thresholds[key.removeprefix("tables.")] = value
        else:
            given[key] = value
    shared = Shared(path, [f"cache={cache}", f"out={out}"], files, last_files, _by_full_names(given))
    runs: list[Node] = []
    tables = Path(out) / "tables"
    for place, row in enumerate(content.get("runs") or []):
        runs += _runs(row, shared, out, tables, f"{path}, run {place + 1}")
    jobs = content.get("jobs")
    jobs = None if jobs is None else whole(jobs, "jobs", 1, MOST_AT_A_TIME, path, "the number of simultaneous runs,")
    nodes = tuple(_in_order([*runs, *_tables(runs, tables)]))
    costs, settings = dict(_mapping(content.get("costs"), f"{path}, costs")), table_settings(thresholds)
    if not runs:
        raise UsageError("a plan without runs", where=path, expected="runs: [{stage: ..., folds: [...], seeds: [...]}]")
    return Plan(nodes, jobs, settings, costs)


def _check_keys(given: Iterable[str], known: Sequence[str], what: str, where: object) -> None:
    for key in given:
        require_known(key, known, f"{what} has no {key}", where)


def _refuse_chosen(key: str, where: object, chosen: Iterable[str] = CHOSEN) -> None:
    if key in chosen:
        raise UsageError(f"{key}= is chosen by the plan", where=where, do="leave it out")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UsageError("does not hold settings", where=where, expected="a mapping of key to value")
    return value or {}


def _runs(row: Mapping[str, Any], shared: Shared, out: Path, tables: Path, where: str) -> list[Node]:
    if not isinstance(row, Mapping):
        raise UsageError("cannot be read as a run", where=where, expected="{stage: ..., folds: [...], seeds: [...]}")
    chosen = _mapping(row.get("set"), f"{where}, set")
    for key in chosen:
        _refuse_chosen(key, where)
    processes = whole(row.get("processes", "1"), "processes", 1, MOST_AT_A_TIME, where, "the most GPUs of a run,")
    for key in ("folds", "seeds"):
        if not isinstance(row.get(key, []), list):
            raise UsageError(f"{key}: {row[key]} is not a list", where=where, expected=f"{key}: [{row[key]}]")
        if not row.get(key, [""]):
            raise UsageError(f"{key}: [] makes no run", where=where, do="name some, or remove the row")
    if row.get("variant") == "":
        raise UsageError("variant: is empty", where=where, do="name one, or remove the key")
    for key, value in chosen.items():
        if not isinstance(value, str):
            raise UsageError(f"set: {key} takes one value", where=where, expected=f"{key}: VALUE")
    _check_keys(row, RUN_KEYS, "a run", where)
    stage = str(row.get("stage"))
    require_known(stage, stage_names(), f"no stage {stage}", where)
    facts, nodes, boxes = stage_class(stage), [], f"boxes={tables / 'study_boxes.parquet'}"
    for fold, seed in product(row.get("folds", ["0"]), row.get("seeds", ["1"])):
        words, needs = [f"stage={stage}", f"fold={fold}", f"seed={seed}"], []
        words += [f"variant={row['variant']}"] if "variant" in row else []
        if facts.learns_from == "pseudo_labels":
            needs.append("pseudo_labels")
            words.append(f"pseudo={tables / 'pseudo_labels.parquet'}")
        try:
            words += shared.words_of(chosen, stage)
            settings = load([*words, boxes, f"backbone={out}"], must_exist=False)
        except UsageError as error:
            error.where = error.where or where
            raise
        if settings.needs_boxes:
            needs.append("study_boxes")
            words.append(boxes)
        if facts.backbone is not None:
            backbone = settings.model_copy(update={"stage": facts.backbone}).run_dir
            needs.append(run_name(backbone))
            words.append(f"backbone={backbone}")
        nodes.append(Node(run_name(settings.run_dir), settings.run_dir, tuple(needs), tuple(words), processes))
    return nodes


def _tables(runs: list[Node], tables: Path) -> list[Node]:
    """The tables between the stages, made from runs that hold a fold out."""

    def held_out(stage: str) -> tuple[str, ...]:
        return tuple(run.name for run in runs if run.stage == stage and RunName.of(run.name).fold != "all")

    nodes = []
    planned = {run.stage for run in runs}
    stages = [stage_class(name) for name in stage_names() if name in planned]
    for stage in stages:
        needs = held_out(stage.name)
        for name in stage.tables if needs else ():
            nodes.append(Node(name, tables / f"{name}.parquet", needs))
            needs = (name,)
    if scored := tuple(name for stage in stages for name in held_out(stage.name)):
        pseudo = any(stage.learns_from == "pseudo_labels" and held_out(stage.name) for stage in stages)
        nodes.append(Node("scores", tables / "scores.json", (*scored, *(["pseudo_labels"] if pseudo else []))))
    return nodes


def feeder(table: str) -> str | None:
    """The stage whose held-out predictions make a table."""
    return next((name for name in stage_names() if table in stage_class(name).tables), None)


def _to_add(need: str) -> str:
    """What to add to the plan."""
    if "/" not in need:
        return f"add {{stage: {feeder(need)}, folds: [...]}} with the folds of the studies that it is for"
    run = RunName.of(need)
    return f"give the plan's {run.stage} runs of variant {run.variant} fold {run.fold} and seed {run.seed}, too"


def _in_order(nodes: list[Node]) -> list[Node]:
    """Each node after its needs, otherwise in the given order. Raises UsageError for a need that no node meets."""
    names = {node.name for node in nodes}
    if len(names) < len(nodes):
        twice = next(node.name for node in nodes if [other.name for other in nodes].count(node.name) > 1)
        raise UsageError(f"the plan has {twice} twice")
    for node in nodes:
        for need in node.needs:
            if need not in names:
                raise UsageError(f"{node.name} needs {need}, which the plan does not make", do=_to_add(need))
    ordered: list[Node] = []
    placed: set[str] = set()
    while len(ordered) < len(nodes):
        ready = next(node for node in nodes if node.name not in placed and placed.issuperset(node.needs))
        ordered.append(ready)
        placed.add(ready.name)
    return ordered


def name_node(error: CspineError, node: Node) -> None:
    """Adds the node's name to where an error is."""
    error.where = node.name if error.where is None else f"{node.name}: {error.where}"
