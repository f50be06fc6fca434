"""Everything that may happen to a source and its cache, in any order."""

import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_files import expected_grey, write_slice
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from kills import only_behind
from tiny_rsna import HEIGHTS, PREFIX, SLICES, files_of, hu_of, write_study

from cache_schema import Cache
from cache_schema.errors import UsageError
from cache_schema.layout import TARGETS
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache
from preprocess.labels import replace_labels

STUDIES = st.integers(1, 5)
multiprocessing.set_forkserver_preload(["distributed", "preprocess.build.build_cache"])


def _build(source: Path, cache: Path, scheduler: str):
    # labels that are only found beside the images do not argue with those of `preprocess labels`
    labels = source / "train.csv"
    return build_cache(source, cache, labels=labels, folds=2, scheduler=scheduler, tell=lambda line: None)


class SourceAndCache(RuleBasedStateMachine):
    """Beside the files: what they should hold. `scheduler` is that of running workers; set it in a subclass."""

    scheduler: str

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        self.source, self.cache = self.folder / "rsna", self.folder / "cache"
        self.source.mkdir()
        self.hu: dict[str, np.ndarray] = {}
        """of the studies in the source"""
        self.kept: dict[str, np.ndarray] = {}
        """of the studies in the cache as the last finished build left it"""
        self.labels: dict[str, int] = {}
        self.labelled: dict[str, int] = {}
        """as the cache has them"""
        self.clock = time.time_ns()
        self.is_behind = True
        self.add(1)

    def teardown(self):
        try:
            self.build()
            _build(self.source, self.folder / "fresh", self.scheduler)
            fresh, built = files_of(self.folder / "fresh"), files_of(self.cache)
            for name, digest in fresh.items():
                assert "/" not in name or built[name] == digest, name
        finally:
            shutil.rmtree(self.folder)

    @rule(n=STUDIES)
    def add(self, n):
        id = f"{PREFIX}.{n}"
        if id in self.hu:
            return
        write_study(self.source, n)
        self.hu[id] = hu_of(n)
        self.labels.setdefault(id, n % 2)
        self.write_labels()

    @precondition(lambda self: len(self.hu) > 1)
    @rule(n=STUDIES)
    def remove(self, n):
        id = f"{PREFIX}.{n}"
        if self.hu.pop(id, None) is not None:
            shutil.rmtree(self.source / "train_images" / id)

    @rule(n=STUDIES, z=st.integers(0, SLICES - 1), seed=st.integers(0, 99))
    def change_a_slice(self, n, z, seed):
        id = f"{PREFIX}.{n}"
        if id not in self.hu:
            return
        self.hu[id] = self.hu[id].copy()
        self.hu[id][z] = np.random.default_rng(seed).integers(-600, 1400, self.hu[id][z].shape)
        path = self.source / "train_images" / id / f"{z + 1}.dcm"
        write_slice(path, self.hu[id][z], z=HEIGHTS[z], number=z + 1, study=id)
        self.clock += 1_000_000  # a change within the file system's clock is not what is tried here
        os.utime(path, ns=(self.clock, self.clock))

    @rule(n=STUDIES)
    def change_labels(self, n):
        id = f"{PREFIX}.{n}"
        if id not in self.labels:
            return
        if self.is_behind:  # or nobody knows which labels the cache has
            self.build()
        self.labels[id] = 1 - self.labels[id]
        self.write_labels()
        if id in self.labelled and self.labelled[id] != self.labels[id]:
            with pytest.raises(UsageError, match="preprocess labels"):
                _build(self.source, self.cache, self.scheduler)
            replace_labels(self.cache, self.source / "train.csv")
            self.labelled = {id: self.labels[id] for id in self.labelled}

    def write_labels(self):
        lines = [",".join(("StudyInstanceUID", *TARGETS))]
        lines += [f"{id},{label},{label},0,0,0,0,0,0" for id, label in sorted(self.labels.items())]
        (self.source / "train.csv").write_text("\n".join(lines) + "\n")

    @rule(seconds=st.floats(0.0, 0.5))
    def kill(self, seconds):
        process = multiprocessing.get_context("forkserver").Process(
            target=_build, args=(self.source, self.cache, self.scheduler)
        )
        process.start()
        deadline = time.monotonic() + 60
        while not (self.cache / ".build").exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.join()
        self.is_behind = True

    @rule()
    def build(self):
        result = _build(self.source, self.cache, self.scheduler)
        assert result.exit_status == 0
        self.kept |= self.hu
        self.labelled = {id: self.labels[id] for id in self.kept}
        self.is_behind = False
        cache = Cache(self.cache)
        assert cache.ids == sorted(self.kept)
        for id, hu in self.kept.items():
            assert np.array_equal(cache.read(id, 0, SLICES), expected_grey(hu))
        assert dict(zip(cache.labels["id"], cache.labels["patient_overall"], strict=True)) == self.labelled

    @rule()
    def verify(self):
        if self.is_behind:
            assert not self.cache.exists() or only_behind(self.cache)
        else:
            assert verify(self.cache) == []
