"""A key for each node of a plan over all it depends on, and each node's state."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cache_schema import TARGETS, Cache
from cache_schema.errors import CspineError
from trainer.plan.graph import Node, Plan, name_node
from trainer.process.command import warn_once
from trainer.runs.file_names import CONFIG_FILE
from trainer.runs.identity import check_done, identity_settings, prediction_settings, recorded_config, run_key
from trainer.runs.inputs import Inputs
from trainer.runs.sources import digest_rows
from trainer.settings.layers import load
from trainer.tables import make
from trainer.tables.recipes import VERSION, recipe_of

HELD_OUT = "held_out"
DONE, STALE, DUE, WAITS = "done", "stale", "due", "waits"
"""states of a node. done: made from the present inputs. stale: made from other inputs, and made again unless its inputs become the
same. due: missing, and its needs are done. waits: missing, and some needs are not done"""


def node_keys(plan: Plan, digests: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """node name -> sha256 hex over its stage's or table's version, its settings, its digests, and the keys it needs.

    Returns the keys of the runs' weights, and of all nodes; a run's node key also covers its predictions. A run that loads
    another's weights depends only on those. A change changes the keys of exactly the nodes that depend on it.
    digests: from `cache_digests`.
    """
    weights: dict[str, str] = {}
    keys: dict[str, str] = {}
    for node in plan.nodes:
        read = dict(digests[node.name])
        held_out = read.pop(HELD_OUT, {})
        if not node.is_run:
            version = VERSION if node.name == "scores" else recipe_of(node.name).version
            own = [version, plan.tables.of(node.name)]
            keys[node.name] = _key(node.name, own, read, [keys[need] for need in node.needs])
            continue
        settings = load(node.words, must_exist=False)
        identity = [settings.facts.version, identity_settings(settings)]
        needed = [weights.get(need) or keys[need] for need in node.needs]
        weights[node.name] = _key(node.name, identity, read, needed)
        keys[node.name] = _key(weights[node.name], prediction_settings(settings), held_out)
    return weights, keys


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_digests(plan: Plan, cache: Cache) -> dict[str, Any]:
    """node name -> digests of what it reads from the cache: studies, segmentations, labels."""
    labels, index = cache.labels, cache.index
    of_labels = "" if labels is None else digest_rows(labels[["id", *TARGETS, "fold"]].itertuples(index=False))
    of_studies = digest_rows(index[["id", "content_digest"]].itertuples(index=False))
    whole = {"labels": of_labels, "studies": of_studies}
    found: dict[str, Any] = {}
    for node in plan.nodes:
        inputs = Inputs(load(node.words, must_exist=False), cache) if node.is_run else None
        found[node.name] = inputs.cache_digests() | {HELD_OUT: inputs.held_out_digests()} if inputs else whole
    return found


def states(plan: Plan, cache: Cache) -> dict[str, str]:
    """node name -> state. A node with a need that is not done is not done."""
    found: dict[str, str] = {}
    for node in plan.nodes:
        ready = all(found[need] == DONE for need in node.needs)
        found[node.name] = state(node, plan, cache) if ready else (STALE if is_there(node) else WAITS)
    return found


def state(node: Node, plan: Plan, cache: Cache) -> str:
    """One node's state, if all its needs are done. A damaged file is reported and makes its node stale.

    Checks a run's weights against their digest if an unfinished run loads them.
    """
    if not node.is_run:
        return DONE if _is_made(node, plan, cache) else STALE if is_there(node) else DUE
    read = any(
        node.name in other.needs and _state_of_run(other, cache, weights_too=False) != DONE for other in plan.runs
    )
    return _state_of_run(node, cache, weights_too=read)


def _state_of_run(node: Node, cache: Cache, *, weights_too: bool) -> str:
    try:
        settings = load(node.words)
        inputs = Inputs(settings, cache)
        key = run_key(settings, inputs)
    except CspineError:
        return WAITS
    try:
        if check_done(settings, inputs, key, weights_too=weights_too):
            return DONE
        recorded = recorded_config(settings.run_dir)
    except CspineError as error:
        warn_once(f"{error}: {node.name} is not done")
        return STALE
    return DUE if recorded is None or recorded["key"] == key else STALE


def require_possible(plan: Plan, cache: Cache, found: Mapping[str, str]) -> None:
    """Raises CspineError for the first run that cannot be made although its needs are done. found: from `states`."""
    for node in plan.runs:
        if found[node.name] == WAITS and all(found[need] == DONE for need in node.needs):
            try:
                Inputs(load(node.words), cache)
            except CspineError as error:
                name_node(error, node)
                raise


def require_unchanged(plan: Plan, cache: Cache) -> None:
    """Raises CacheError if a study that a run reads differs from the cache's index, on which all keys depend."""
    for node in plan.runs:
        try:
            inputs = Inputs(load(node.words, must_exist=False), cache)
        except CspineError:  # the run reports it
            continue
        inputs.require_unchanged()


def is_there(node: Node) -> bool:
    return (node.output / CONFIG_FILE if node.is_run else node.output).is_file()


def _is_made(node: Node, plan: Plan, cache: Cache) -> bool:
    if node.name == "scores":  # has no metadata, and is always made again
        return node.output.is_file()
    runs = [plan[name].output for name in node.needs if plan[name].is_run]
    try:
        return make.is_made(node.name, make.Sources(node.output.parents[1], cache, tuple(runs), plan.tables))
    except CspineError as error:
        warn_once(str(error))
        return False
