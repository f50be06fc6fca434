"""Caches that are built into an S3 store: the bytes of a local build, whoever builds, on whatever machines, and after kills."""

import os
import shutil
import signal
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from distributed import Client
from faulty_proxy import SOME_OF_EACH, Faults, faulty_proxy
from kills import kill_builds_into_store
from s3_server import environment
from stores import cluster_of_separate_machines, objects_of, place, run, start
from tiny_rsna import IDS, PREFIX, files_of, touch_later, write_study

from cache_schema import Cache, CacheWriter
from cache_schema.errors import CacheError, UsageError
from cache_schema.layout import TARGETS
from cache_schema.store_path import place_of
from cache_schema.stores import StoreError
from cache_schema.verify import verify
from preprocess.build.build_cache import build_cache
from preprocess.build.dask_pool import local_cluster
from preprocess.copy_cache import copy_cache
from preprocess.labels import LabelsTable


@pytest.fixture(scope="module")
def s3(started_s3):
    """For the whole module, since the workers of `scheduler` take its environment over."""
    with environment(started_s3.environment):
        yield started_s3


@pytest.fixture(scope="module")
def scheduler(s3):
    with local_cluster(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def in_store(s3, made, scheduler):
    """A cache built into the store: its name there."""
    assert build(made, place(s3, "built"), scheduler).published == len(IDS)
    return "built"


def build(source, cache, scheduler=None, **options):
    return build_cache(source, cache, **{"folds": 2, "scheduler": scheduler, "tell": lambda line: None} | options)


def test_a_build_into_a_store_makes_the_objects_that_a_local_build_makes_files(s3, made, built, in_store):
    assert objects_of(s3, in_store) == files_of(built) and verify(place(s3, in_store)) == []
    kept = {str(path.relative_to(built)): path.read_bytes() for path in (built / ".build").rglob("*.json")}
    kept = {name: sha256(data).hexdigest() for name, data in kept.items()}
    of_folders = ".build/source.json"  # not of those that were written within two seconds
    assert objects_of(s3, in_store, build=True) | {of_folders: ""} == kept | {of_folders: ""}


def test_a_source_in_a_store_is_built_as_from_a_folder_masks_and_labels_included(s3, made, built, scheduler, tmp_path):
    client = s3.client()
    for file in made.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), s3.bucket, f"raw/{file.relative_to(made).as_posix()}")
    assert build(place(s3, "raw"), place(s3, "of-store"), scheduler).published == len(IDS)
    assert objects_of(s3, "of-store") == files_of(built)
    assert build(place(s3, "raw"), tmp_path / "cache", scheduler).published == len(IDS)
    assert files_of(tmp_path / "cache") == files_of(built)
    again = build(place(s3, "raw"), tmp_path / "cache", scheduler)
    assert (again.published, again.skipped) == (0, len(IDS))

    changed = made / "train_images" / IDS[1] / "3.dcm"
    client.put_object(Bucket=s3.bucket, Key=f"raw/train_images/{IDS[1]}/3.dcm", Body=changed.read_bytes() + bytes(2))
    again = build(place(s3, "raw"), tmp_path / "cache", scheduler)
    assert (again.published, again.skipped) == (1, len(IDS) - 1)
    client.delete_object(Bucket=s3.bucket, Key=f"raw/train_images/{IDS[1]}/3.dcm")
    with pytest.raises(UsageError, match="holds no files"):
        build(place(s3, "nothing"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_build_that_changes_nothing_asks_for_two_objects_a_study(s3, made, in_store):
    with faulty_proxy(s3.endpoint, Faults()) as proxy:
        nobody = ("--folds", 2, "--scheduler", "tcp://127.0.0.1:1")
        done = run("build-cache", made, place(s3, in_store), *nobody, AWS_ENDPOINT_URL=proxy.address)
        asked = Counter(f"{method} {path.split('?')[0]}" for method, path, *_ in proxy.requests)
        of_studies = [line for line in proxy.requests if PREFIX in line[1]]
    assert "0 new, 4 unchanged" in done.stdout, done.stderr
    written = {path.rpartition("/")[2] for method, path, *_ in proxy.requests if method in ("PUT", "DELETE")}
    assert written <= {"source.json"}, asked  # of folders that had just been written when the first build looked
    assert len(of_studies) == 2 * len(IDS), asked
    assert len(proxy.requests) - len(of_studies) < 25, asked


def test_a_study_that_changed_is_built_again_and_the_others_are_not_written(s3, source, scheduler):
    cache = place(s3, "changed")
    build(source, cache, scheduler)
    touch_later(source / "train_images" / IDS[1] / "3.dcm")
    before = objects_of(s3, "changed")
    with faulty_proxy(s3.endpoint, Faults()) as proxy, environment({"AWS_ENDPOINT_URL": proxy.address}):
        with local_cluster(1) as cluster:
            result = build(source, cache, cluster.scheduler_address)
        written = {path for method, path, *_ in proxy.requests if method in ("PUT", "DELETE")}
    assert (result.published, result.skipped) == (1, 3) and objects_of(s3, "changed") == before
    assert {id for id in IDS if any(f"/{id}" in path for path in written)} == {IDS[1]}


def test_a_builder_whose_worker_may_not_write_ends_with_one_line_and_takes_nothing_out(s3, made, in_store, tmp_path):
    before = objects_of(s3, in_store)
    source = shutil.copytree(made, tmp_path / "rsna")
    touch_later(source / "train_images" / IDS[0] / "1.dcm")
    with environment({"AWS_SECRET_ACCESS_KEY": "wrong"}), local_cluster(1) as cluster:
        address = cluster.scheduler_address
        with environment({"AWS_SECRET_ACCESS_KEY": s3.secret}), pytest.raises(StoreError, match="on a worker") as error:
            build(source, place(s3, in_store), address)
    assert "refuses access" in str(error.value) and "AWS_SECRET_ACCESS_KEY" in str(error.value)
    assert objects_of(s3, in_store) == before


def test_of_two_that_write_labels_at_once_the_later_one_learns_of_the_other(s3, built, in_store):
    copy_cache(place(s3, in_store), place(s3, "labelled"), tell=lambda line: None)
    for cache in (place(s3, "labelled"), "memory://labelled"):
        if cache.startswith("memory"):
            copy_cache(built, cache, tell=lambda line: None)
        writer, other = CacheWriter(cache), CacheWriter(cache)
        tag, table = writer.labels_tag(), LabelsTable.read(place_of(cache))
        other.write_file("labels.parquet", table.as_bytes() + b" ")
        assert not writer.write_labels(table.as_bytes(), tag)
        assert writer.write_labels(table.as_bytes(), writer.labels_tag())
        writer.write_file("labels.parquet", None)
        assert writer.labels_tag() is None
        assert writer.write_labels(b"1", None) and not writer.write_labels(b"2", None)


@pytest.mark.check
def test_the_command_builds_on_its_own_workers_with_shards_and_says_nothing_of_credentials(s3, made, tmp_path):
    assert run("build-cache", made, tmp_path / "local", "--folds", 2, "--shard", 64, "--workers", 1).returncode == 0
    cache = place(s3, "sharded")
    done = run("build-cache", made, cache, "--folds", 2, "--shard", 64, "--workers", 1)
    assert done.returncode == 0 and "4 new" in done.stdout
    assert objects_of(s3, "sharded") == files_of(tmp_path / "local")
    assert "0 new, 4 unchanged" in run("build-cache", made, cache, "--folds", 2).stdout
    assert run("verify", cache).returncode == 0
    assert IDS[0] in run("inspect", cache, IDS[0]).stdout
    kept = b"".join(s3.objects("sharded/").values())
    assert s3.secret.encode() not in kept and s3.key.encode() not in kept


@pytest.mark.check
def test_labels_boxes_and_crops_of_a_store_are_those_of_a_folder(s3, made, built, in_store, tmp_path):
    local, cache = shutil.copytree(built, tmp_path / "cache"), place(s3, "commands")
    assert copy_cache(place(s3, in_store), cache, tell=lambda line: None).problems == []
    pd.DataFrame({"id": IDS, "x0": 1, "y0": 1, "x1": 9, "y1": 9, "z_from": 0, "z_to": 5}).to_parquet(
        tmp_path / "boxes.parquet"
    )
    pd.read_csv(made / "train.csv").assign(patient_overall=1, C7=1).to_csv(tmp_path / "other.csv", index=False)
    for where, out in ((local, tmp_path / "crop"), (cache, place(s3, "cropped"))):
        CacheWriter(where).set_boxes(pd.read_parquet(tmp_path / "boxes.parquet"))
        assert run("labels", where, tmp_path / "other.csv").returncode == 0
        assert run("crop", where, out).returncode == 0
    assert objects_of(s3, "commands") == files_of(local)
    assert objects_of(s3, "cropped") == files_of(tmp_path / "crop")
    assert verify(cache) == [] == verify(place(s3, "cropped"))


@pytest.mark.check
def test_a_copy_to_a_store_that_is_killed_goes_on_and_a_copy_of_the_copy_is_the_cache(s3, built, tmp_path):
    cache = place(s3, "copied")
    with faulty_proxy(s3.endpoint, Faults(slow=1, seconds=0.1)) as proxy:
        copying = start(["copy", built, cache], AWS_ENDPOINT_URL=proxy.address)
        while sum(method == "PUT" for method, *_ in list(proxy.requests)) < 20:
            assert copying.poll() is None
            time.sleep(0.01)
        os.killpg(copying.pid, signal.SIGKILL)
        copying.communicate()
    assert objects_of(s3, "copied") != files_of(built)
    assert run("copy", built, cache).returncode == 0
    assert objects_of(s3, "copied") == files_of(built)
    assert "0 copied now" in run("copy", built, cache).stdout
    assert run("copy", cache, tmp_path / "back").returncode == 0
    assert run("copy", cache, tmp_path / "cache.zip").returncode == 0
    assert files_of(tmp_path / "back") == files_of(built) and verify(tmp_path / "cache.zip") == []
    assert run("copy", tmp_path / "cache.zip", tmp_path / "unpacked").returncode == 0
    assert files_of(tmp_path / "unpacked") == files_of(built)


@pytest.mark.check
def test_builds_into_a_store_that_are_killed_go_on_to_the_same_objects(s3, made, scheduler, tmp_path):
    done = kill_builds_into_store(made, tmp_path, s3, scheduler, count=2, seed=1)
    assert done.kills and not done.not_whole and not done.differing


@pytest.mark.check
def test_two_builders_of_one_source_end_with_the_bytes_of_one(s3, made, built):
    cache = place(s3, "both")
    builders = [start(["build-cache", made, cache, "--folds", 2, "--workers", 1]) for _ in range(2)]
    said = [builder.communicate() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], said
    assert objects_of(s3, "both") == files_of(built) and verify(cache) == []


@pytest.mark.check
def test_of_two_builders_one_of_which_is_killed_the_other_ends_with_all(s3, made, built):
    cache = place(s3, "one-killed")
    builders = [start(["build-cache", made, cache, "--folds", 2, "--workers", 1]) for _ in range(2)]
    while not s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=f"one-killed/{PREFIX}").get("Contents"):
        assert all(builder.poll() is None for builder in builders)
        time.sleep(0.01)
    os.killpg(builders[0].pid, signal.SIGKILL)
    said = [builder.communicate() for builder in builders]
    assert builders[1].returncode == 0, said
    assert objects_of(s3, "one-killed") == files_of(built) and verify(cache) == []


@pytest.mark.check
def test_two_builders_of_sources_that_overlap_lose_neither_studies_nor_labels(s3, made, built, tmp_path):
    sources = [write_part(made, tmp_path / "first", IDS[:3]), write_part(made, tmp_path / "second", IDS[1:])]
    cache = place(s3, "overlapping")
    builders = [start(["build-cache", source, cache, "--folds", 2, "--workers", 1]) for source in sources]
    said = [builder.communicate() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], said
    assert verify(cache) == [] and Cache(cache).ids == IDS
    of_studies = {name: digest for name, digest in files_of(built).items() if "/" in name}
    assert {name: digest for name, digest in objects_of(s3, "overlapping").items() if "/" in name} == of_studies
    given = pd.read_csv(made / "train.csv").set_index("StudyInstanceUID")[list(TARGETS)]
    kept = Cache(cache).labels.set_index("id")
    assert (kept[list(TARGETS)].astype(int) == given.loc[kept.index]).all(axis=None) and list(kept.index) == IDS
    assert kept["fold"].notna().all()


def write_part(made: Path, source: Path, ids: list[str]) -> Path:
    """Some of the studies, with their rows of labels and their masks."""
    for id in ids:
        shutil.copytree(made / "train_images" / id, source / "train_images" / id)
        if (mask := made / "segmentations" / f"{id}.nii").exists():
            (source / "segmentations").mkdir(exist_ok=True)
            shutil.copy2(mask, source / "segmentations")
    table = pd.read_csv(made / "train.csv")
    table[table["StudyInstanceUID"].isin(ids)].to_csv(source / "train.csv", index=False)
    return source


@pytest.mark.check
def test_workers_that_share_nothing_but_the_source_and_the_store_build_the_same_bytes(s3, made, built, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: this system has no mount namespaces")
    (tmp_path / "of-the-client").touch()
    with cluster_of_separate_machines(made) as address:
        check_separate(address, tmp_path, made)
        done = run("build-cache", made, place(s3, "apart"), "--folds", 2, "--scheduler", address)
        assert done.returncode == 0 and "4 new" in done.stdout, done.stderr
        assert objects_of(s3, "apart") == files_of(built) and verify(place(s3, "apart")) == []
        write_study(other := tmp_path / "elsewhere", 5)  # which the workers do not see
        done = run("build-cache", other, place(s3, "unseen"), "--folds", 2, "--scheduler", address)
        assert done.returncode == 2 and "1 refused" in done.stdout


def check_separate(address: str, client: Path, source: Path) -> None:
    """That the workers see neither each other's files nor the client's, and can write in none but their own folders."""

    def look(number):
        from pathlib import Path

        mark = Path(f"/tmp/mark-{number}")
        mark.touch()
        tries = (Path(f"{folder}/mark") for folder in (source, "/var", Path(__file__).parent, Path(os.__file__).parent))
        written = []
        for file in tries:
            try:
                file.touch()
                written.append(str(file))
            except OSError:
                pass
        return sorted(each.name for each in Path("/tmp").glob("mark-*")), client.exists(), written

    with Client(address) as connected:
        workers = list(connected.scheduler_info()["workers"])
        found = [connected.submit(look, n, workers=[at], pure=False).result() for n, at in enumerate(workers)]
    assert found == [([f"mark-{number}"], False, []) for number in range(2)]


@pytest.mark.check
def test_a_build_through_a_failing_network_ends_with_the_same_bytes(s3, made, built):
    with faulty_proxy(s3.endpoint, SOME_OF_EACH) as proxy:
        done = run(
            "build-cache", made, place(s3, "faults"), "--folds", 2, "--workers", 1, AWS_ENDPOINT_URL=proxy.address
        )
        assert done.returncode == 0 and sum(proxy.injected.values()) > 5, done.stderr
    assert objects_of(s3, "faults") == files_of(built)


def test_a_study_that_another_builder_took_out_for_good_is_named(s3, built, monkeypatch):
    from preprocess.build import job

    monkeypatch.setattr(job, "REPLACED_WITHIN", 0.1)
    copy_cache(built, "memory://gone", tell=lambda line: None)
    writer = CacheWriter("memory://gone")
    build_job = job.BuildJob(Path(), writer, None, None, None, "", None, False, False, lambda line: None)
    with pytest.raises(CacheError, match=r"another process took 1 studies out, first 1\.2\.3"):
        build_job._index_with({*IDS, "1.2.3"})
