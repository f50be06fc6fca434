"""Packs the models of a plan into one file."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from cache_schema.documents import canonical_json, digest_of, sync
from trainer.answers.unlike import RANGE
from trainer.leakage import exposure, lineage
from trainer.runs.weights import DIGEST, MADE_WITH, version_of
from trainer.settings.settings import is_path
from trainer.trained.model_card import model_card
from trainer.trained.models import Models, TrainedModel
from trainer.trained.pack_file import CARD, MANIFEST, VERSION, salted, write_entries

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ("key", "version", "pixel_hash", "fold", "seed", RANGE, MADE_WITH, DIGEST)
"""metadata of the weights that go along: no paths, no ids of studies"""


def write_pack(models: Models, out: Path) -> None:
    """Writes the file whole, then renames it. models: of runs. The same models give the same bytes. Raises CspineError."""
    part = out.with_name(f".{out.name}.{token_hex(4)}.part")
    try:
        write_entries(part, _entries(models))
        sync(part)
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(out.parent)


def _entries(models: Models) -> Iterator[tuple[str, bytes]]:
    """The manifest first, which lists the digests of all that follows: so the weights are read twice, and kept never."""
    every, salt = models.every, digest_of([model.digest for model in models.every])
    shared = _shared_backbones(every)
    listed: list[dict[str, Any]] = []
    files: dict[str, str] = {}
    for model in every:
        own = [(name, hashlib.sha256(content).hexdigest()) for name, content in _files(model, shared)]
        files |= dict(own)
        listed.append(_listed(model, own[0][0], own[1][0] if len(own) > 1 else None, salt))
    manifest = {
        "version": VERSION,
        "made_by": f"cspine {version_of('cspine')}",
        "pixel_hash": models.pixel_hash,
        "models": listed,
        "thresholds": models.thresholds.model_dump(mode="json"),
        "calibration": None if models.calibration is None else models.calibration.document(),
        "priors": models.priors or None,
        "levels_found": models.levels_found,
        "leave_out": models.leave_out,
        "salt": salt,
    }
    card = model_card(manifest, models).encode()
    files[CARD] = hashlib.sha256(card).hexdigest()
    yield MANIFEST, canonical_json(manifest | {"files": files})
    yield CARD, card
    written = set()
    for model in every:
        for name, content in _files(model, shared):
            if name not in written:
                yield name, content
                written.add(name)


def _listed(model: TrainedModel, file: str, backbone: str | None, salt: str) -> dict[str, Any]:
    ids = lineage.seen_at_all(exposure.kept(model.where))
    return {
        "name": model.name,
        "file": file,
        "backbone": backbone,
        "bytes": model.bytes,
        "digest": model.digest,
        "seen": {kind: sorted(salted(salt, id) for id in own) for kind, own in model.seen(ids).items()},
        "config": _without_paths(model.config),
        "metadata": {name: model.metadata[name] for name in METADATA if name in model.metadata},
    }


def _without_paths(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those that name files of a machine, and without what was chosen for its hardware."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key != "chosen":
                kept[key] = _without_paths(value, f"{prefix}{key}.")
        elif not is_path(prefix + key, value):
            kept[key] = value
    return kept


def _shared_backbones(models: Collection[TrainedModel]) -> set[str]:
    """Digests of CNNs that several of the models have."""
    count: dict[str, int] = {}
    for model in models:
        digest = _tensor_digest(_parts(model)[1])
        count[digest] = count.get(digest, 0) + 1
    return {digest for digest, number in count.items() if number > 1}


def _files(model: TrainedModel, shared: Collection[str]) -> list[tuple[str, bytes]]:
    """(name, content) of the file with the model's tensors and, if others have the same CNN, of the CNN's."""
    from safetensors.torch import save

    heads, backbone = _parts(model)
    name, digest = model.name.replace("/", "-"), _tensor_digest(backbone)
    if digest not in shared:
        return [(f"models/{name}.safetensors", save(model.tensors()))]
    return [
        (f"models/{name}.safetensors", save(heads)),
        (f"backbones/{digest[:16]}.safetensors", save(backbone)),
    ]


def _parts(model: TrainedModel) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """The tensors of the heads, and of the CNN by its own names."""
    from trainer.models.backbone import PREFIX

    tensors = model.tensors()
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    return heads, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def _tensor_digest(tensors: "Mapping[str, Tensor]") -> str:
    from safetensors.torch import save

    return hashlib.sha256(save(dict(tensors))).hexdigest()
