"""A plan as a graph: which runs and tables there are, what each needs, and the command that makes it. Pure; opens nothing but the plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import UsageError
from trainer.config import STAGES, load, nearest, read_yaml

RUN_KEYS = ("stage", "variant", "folds", "seeds", "set")
PLAN_KEYS = ("runs", "config", "jobs")


@dataclass(frozen=True)
class Node:
    name: str
    output: Path
    """a run's folder, or a table's file"""
    needs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """a run's settings as `key=value`; none for a table"""

    @property
    def is_run(self) -> bool:
        return bool(self.words)


@dataclass(frozen=True)
class Plan:
    nodes: tuple[Node, ...]
    """in an order in which each comes after what it needs"""
    jobs: int | None
    """runs at a time; None: one for each GPU, one on a CPU"""

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def read_plan(path: Path, cache: Path, out: Path, extra: Iterable[str] = ()) -> Plan:
    """PLAN.yaml -> its graph. extra: `section.key=value` words for every run. Raises UsageError naming what does not fit."""
    content = read_yaml(path)
    for key in content:
        if key not in PLAN_KEYS:
            raise UsageError(f"a plan has no {key}", where=path, do=nearest(key, PLAN_KEYS))
    common = [f"cache={cache}", f"out={out}"]
    extra, files = list(extra), [str(path.parent / content["config"])] if "config" in content else []
    for word in list(extra):
        key, _, value = word.partition("=")
        if key in ("stage", "variant", "fold", "seed"):
            raise UsageError(f"{key}= belongs to the plan's runs, not to all of them", do=f"edit {path}")
        if key == "config":
            files.append(value)
            extra.remove(word)
    if files:
        common.append(f"config={','.join(files)}")
    runs: list[Node] = []
    tables = Path(out) / "tables"
    for place, row in enumerate(content.get("runs") or []):
        runs += _runs(row, common, extra, out, tables, f"{path}, run {place + 1}")
    jobs = content.get("jobs")
    if jobs is not None and not (isinstance(jobs, str) and jobs.isdigit() and int(jobs) > 0):
        raise UsageError(f"jobs={jobs!r} does not fit", where=path, expected="how many runs at a time")
    return Plan(tuple(_in_order([*runs, *_tables(runs, tables)])), int(jobs) if jobs is not None else None)


def _runs(
    row: Mapping[str, Any], common: list[str], extra: list[str], out: Path, tables: Path, where: str
) -> list[Node]:
    if not isinstance(row, Mapping) or not isinstance(row.get("set", {}), Mapping):
        raise UsageError("cannot be read as a run", where=where, expected="{stage: ..., folds: [...], seeds: [...]}")
    for key in ("folds", "seeds"):
        if not isinstance(row.get(key, []), list):
            raise UsageError(f"{key}: {row[key]} is no list", where=where, expected=f"{key}: [{row[key]}]")
    for key in row:
        if key not in RUN_KEYS:
            raise UsageError(f"a run has no {key}", where=where, do=nearest(key, RUN_KEYS))
    stage = row.get("stage")
    if stage not in STAGES:
        raise UsageError(f"no stage {stage}", where=where, do=nearest(str(stage), STAGES))
    nodes = []
    for fold in row.get("folds", ["0"]):
        for seed in row.get("seeds", ["1"]):
            words = [f"stage={stage}", f"fold={fold}", f"seed={seed}", *common]
            words += [f"variant={row['variant']}"] if "variant" in row else []
            words += [f"{key}={value}" for key, value in (row.get("set") or {}).items()] + extra
            needs = []
            if stage == "slice_fracture":
                needs, words = ["pseudo_labels"], [*words, f"pseudo={tables / 'pseudo_labels.parquet'}"]
            settings = load([*words, f"boxes={tables / 'study_boxes.parquet'}", f"backbone={out}"], must_exist=False)
            if settings.data.crop or stage == "study_fracture":
                needs, words = [*needs, "study_boxes"], [*words, f"boxes={tables / 'study_boxes.parquet'}"]
            if stage == "study_fracture":
                backbone = settings.model_copy(update={"stage": "slice_fracture"}).run_dir
                needs, words = [*needs, _name(backbone)], [*words, f"backbone={backbone}"]
            nodes.append(Node(_name(settings.run_dir), settings.run_dir, tuple(needs), tuple(words)))
    return nodes


def _name(run_dir: Path) -> str:
    return f"{run_dir.parent.name}/{run_dir.name}"


def _tables(runs: list[Node], tables: Path) -> list[Node]:
    """The tables that lie between the stages, made from runs that hold a fold out."""

    def held_out(stage: str) -> tuple[str, ...]:
        return tuple(run.name for run in runs if run.name.startswith(f"{stage}-") and "/foldall-" not in run.name)

    nodes = []
    if boxes := held_out("bbox"):
        nodes.append(Node("study_boxes", tables / "study_boxes.parquet", boxes))
    if ratios := held_out("vertebrae"):
        nodes.append(Node("vertebra_ratios", tables / "vertebra_ratios.parquet", ratios))
        nodes.append(Node("pseudo_labels", tables / "pseudo_labels.parquet", ("vertebra_ratios",)))
    if studies := held_out("study_fracture"):
        nodes.append(Node("study_predictions", tables / "study_predictions.parquet", studies))
    if scored := tuple(name for stage in STAGES for name in held_out(stage)):
        nodes.append(Node("scores", tables / "scores.json", scored))
    return nodes


def _in_order(nodes: list[Node]) -> list[Node]:
    """Each after what it needs, otherwise as given. Raises UsageError for a need that no node meets."""
    names = {node.name for node in nodes}
    if len(names) < len(nodes):
        twice = next(node.name for node in nodes if [other.name for other in nodes].count(node.name) > 1)
        raise UsageError(f"the plan has {twice} twice")
    for node in nodes:
        for need in node.needs:
            if need not in names:
                raise UsageError(
                    f"{node.name} needs {need}, which the plan does not make", do=nearest(need, sorted(names))
                )
    ordered: list[Node] = []
    placed: set[str] = set()
    while len(ordered) < len(nodes):
        ready = next(node for node in nodes if node.name not in placed and placed.issuperset(node.needs))
        ordered.append(ready)
        placed.add(ready.name)
    return ordered
