"""What people use instead: the requests and their answers, by a process as `make bench` starts it, and the same images."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.others import with_opencv
from benchmarks.peers import client
from benchmarks.peers.client import Peer, PeerFailed
from benchmarks.peers.image import Item as Asked
from benchmarks.peers.image import Look, make_image
from benchmarks.peers.requests import item_fields, look_fields
from benchmarks.peers.ways import ROWS, WAYS
from cache_schema import Cache
from cache_schema.errors import UsageError
from preprocess.build.build_cache import build_cache
from preprocess.phantom.generate import write_phantom
from preprocess.series.planning import plan_studies
from trainer.data.augment import Augmentation
from trainer.data.items import Item
from trainer.data.order import ScheduledItem
from trainer.data.source import Source
from trainer.settings.settings import AugmentSettings

SLICES, BOX = 15, (90, 120, 400, 380)
PACKAGE = Path(client.__file__).parent
FULL = AugmentSettings(flip=0.5, contrast=1, affine=0.75, warp=0.75, cutout=1, reverse=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(cache, DICOM files by study)"""
    folder = tmp_path_factory.mktemp("peers")
    write_phantom(folder / "rsna", studies=2, slices=SLICES, segmented=0, syntax="mixed", workers=1, progress=False)
    build_cache(folder / "rsna", folder / "cache", tell=lambda line: None)
    files = {plan.id: [str(entry.path) for entry in plan.slices] for plan in plan_studies(folder / "rsna")[0]}
    return Cache(folder / "cache"), files


def source_of(cache, frames, crops):
    """Every item of the cache, augmented; crops: of a box, else of whole slices."""
    places = [(id, start) for id in cache.ids for start in range(0, SLICES - frames + 1, 4)]
    items = [Item(key, id, start, frames, SLICES) for key, (id, start) in enumerate(places)]
    schedule = type("Schedule", (), {"items": items})()
    return Source(cache, schedule, Augmentation(512, 5, FULL), dict.fromkeys(cache.ids, BOX) if crops else None)


def entries_of(source, epochs):
    return [ScheduledItem(epoch, item) for epoch in range(epochs) for item in source.schedule.items]


def difference(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return np.abs(found.astype(np.float32) - expected.astype(np.float32)).max()


@pytest.mark.parametrize(("frames", "crops"), [(12, True), (3, False)])
def test_the_image_step_of_the_readers_makes_the_images_of_this_projects_opencv_lines(data, frames, crops):
    cache, _ = data
    source, look = source_of(cache, frames, crops), Look.of(look_fields(512))
    kinds = set()
    for entry in entries_of(source, 4):
        asked = Asked.of(item_fields(source, entry))
        slices = cache.read(asked.id, asked.start, asked.end)[(slice(None, None, asked.step), *asked.inside)]
        assert difference(make_image(slices, asked, look), with_opencv(source.sample(entry))) == 0
        kinds.add((bool(np.ptp(np.diff(asked.axis_x)) > 1e-3), asked.reverse, asked.gain > 1, len(asked.holes) > 0))
    assert {grid for grid, *_ in kinds} == {True, False} and {gain for *_, gain, _ in kinds} == {True, False}
    assert any(holes for *_, holes in kinds) and (frames > 3 or {each[1] for each in kinds} == {True, False})


def test_an_item_that_passes_the_end_of_its_study_is_padded_as_here(data):
    cache, _ = data
    source = source_of(cache, 12, crops=True)
    short = Item(0, cache.ids[0], SLICES - 7, 12, SLICES)
    asked = Asked.of(item_fields(source, ScheduledItem(0, short)))
    slices = cache.read(asked.id, asked.start, SLICES)[(slice(None), *asked.inside)]
    assert (
        difference(
            make_image(slices, asked, Look.of(look_fields(512))), with_opencv(source.sample(ScheduledItem(0, short)))
        )
        == 0
    )


@pytest.mark.parametrize("way", ["png", "npy"])
def test_a_peer_prepares_opens_and_makes_the_same_images_in_a_process_of_its_own(data, tmp_path, way):
    cache, files = data
    source = source_of(cache, 12, crops=True)
    entries = entries_of(source, 2)
    items = [item_fields(source, entry) for entry in entries]
    opened = {"files": files, **look_fields(512)}
    with Peer(way, tmp_path / way, sys.executable) as peer:
        assert peer.ask({"do": "versions"})["versions"]["numpy"] == np.__version__
        (tmp_path / way).mkdir()
        (tmp_path / way / "left.over").touch()
        prepared = peer.ask({"do": "prepare", "files": files})
        assert prepared["cpu_ms"] > 0 and prepared["wall_ms"] > 0 and not (tmp_path / way / "left.over").exists()
        assert prepared["bytes"] == sum(path.stat().st_size for path in (tmp_path / way).rglob("*") if path.is_file())
        assert peer.ask({"do": "open", **opened}) == {}
        cost = peer.ask({"do": "window", "items": items, "keep": str(tmp_path / "kept.npy")})
        assert cost["cpu_ms"] > 0 and set(cost) == {"cpu_ms", "wall_ms"}
        expected = np.stack([with_opencv(source.sample(entry)) for entry in entries])
        assert difference(np.load(tmp_path / "kept.npy"), expected) == 0
    if way == "npy":
        assert Peer.first(way, tmp_path / way, opened, items[:3], 4, sys.executable) > 0


@pytest.mark.check
def test_a_loader_of_two_processes_gives_batches(data, tmp_path):
    cache, files = data
    source = source_of(cache, 12, crops=True)
    items = [item_fields(source, entry) for entry in entries_of(source, 1)]
    with Peer("npy", tmp_path / "npy", sys.executable) as peer:
        peer.ask({"do": "prepare", "files": files})
        peer.ask({"do": "open", "files": files, **look_fields(512)})
        assert peer.ask({"do": "loader", "items": items, "workers": 2, "count": 3})["wall_ms"] > 0


def test_an_error_is_one_line_and_the_next_request_is_answered(tmp_path):
    with Peer("npy", tmp_path / "npy", sys.executable) as peer:
        for request, said in [
            ({"do": "dance"}, "do='dance' is not a request; expected one of versions, prepare"),
            ({"do": "prepare", "files": {"1.2": ["no/such\nfile.dcm"]}}, "FileNotFoundError"),
        ]:
            with pytest.raises(PeerFailed, match=re.escape(said)) as error:
                peer.ask(request)
            assert str(error.value).startswith(f".npy memory maps, {request['do']}: ") and "\n" not in str(error.value)
        assert peer.ask({"do": "versions"})["versions"]["numpy"]


def test_a_peer_that_ends_is_told_in_one_line(tmp_path):
    with (
        Peer("npy", tmp_path / "npy", "/bin/false") as peer,
        pytest.raises(PeerFailed, match=r"has ended; see .*npy\.log"),
    ):
        peer.ask({"do": "versions"})


def test_a_peer_that_hangs_is_ended_with_what_it_started_and_told_in_one_line(tmp_path):
    hangs = tmp_path / "python"
    hangs.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/pid\nwait\n")
    hangs.chmod(0o755)
    said = pytest.raises(PeerFailed, match=r"^\.npy memory maps, versions: has not answered in 2 s$")
    with Peer("npy", tmp_path / "npy", hangs, patience=2) as peer, said:
        peer.ask({"do": "versions"})
    status, until = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat"), time.monotonic() + 20
    while status.exists() and ") Z " not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_serve_names_the_ways_for_a_wrong_one():
    command = [sys.executable, "-m", "benchmarks.peers.serve", "pickle", "."]
    found = subprocess.run(command, cwd=client.ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and found.stderr.startswith("expected WAY FOLDER") and found.stderr.count("\n") == 1


def test_a_missing_environment_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    with pytest.raises(
        UsageError, match=r"^MONAI CacheDataset: has no environment; expected .*/monai; run make peers$"
    ):
        Peer("monai-cache", tmp_path / "x")


@pytest.mark.parametrize("way", WAYS)
def test_a_way_names_a_module_a_class_and_rows_that_are_there(way):
    chosen = WAYS[way]
    text = (PACKAGE / f"{chosen.module}.py").read_text()
    assert re.search(rf"^class {chosen.holds}\(", text, re.M)
    assert set(chosen.lacks) <= set(ROWS) and "window" not in chosen.lacks
    if not chosen.environment:
        return
    assert (PACKAGE / "requirements" / f"{chosen.environment}.txt").exists()
    assert not re.search(r"^\s*(from|import) (preprocess|cache_schema|trainer|pandas|pydantic)\b", text, re.M)


def test_every_requirement_is_one_version_and_belongs_to_a_way():
    found = list((PACKAGE / "requirements").iterdir())
    assert {path.stem for path in found} == {chosen.environment for chosen in WAYS.values()} - {""}
    for path in found:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) > 5
        assert all(re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9][^ ;]*( ; .+)?", line) for line in lines), path
        assert {"numpy", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg"} <= {line.split("==")[0] for line in lines}
