"""What the machine refuses is one line, in every command, and the same command afterwards makes what it would have made."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planting import planted
from trainer_faults import COMMANDS, LONG, Places, plant_trainer_faults, quietly

from trainer import run, train
from trainer.process.faults import in_one_line

ROOT = Path(__file__).resolve().parents[2]
FEW, MANY = 3, 12
DEAR = ("plan", "predict", "tables", "look tables=")
"""commands that the quick tests leave to the others"""
MODULES = ("plan", "tables", "predict", "look", "run")


@pytest.fixture(scope="module")
def places(tiny_cache, tmp_path_factory):
    return Places.make(tmp_path_factory.mktemp("refusals") / "places", tiny_cache)


def check_failures(places, name, count):
    failed = plant_trainer_faults(places, name, count)
    assert failed.tried and failed.wrong == [], "\n".join(failed.wrong)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in DEAR])
def test_a_failure_at_any_operation_is_one_line_and_the_next_run_mends_it(places, name):
    check_failures(places, name, 2 if name in LONG else FEW)


@pytest.mark.check
@pytest.mark.parametrize("name", COMMANDS)
def test_many_failures_at_any_operation(places, name):
    check_failures(places, name, MANY)


# what follows a training


def words_of(cache, settings, out, *more):
    return ["stage=bbox", f"cache={cache}", f"out={out}", f"config={settings}", *more]


def test_a_run_that_is_done_keeps_no_checkpoint(tiny_cache, tiny_settings, tmp_path):
    words = words_of(tiny_cache, tiny_settings, tmp_path)
    assert quietly(run.main, words)[0] == 0
    run_dir = tmp_path / "bbox-01B/fold0-seed1"
    kept = sorted(path.name for path in run_dir.iterdir())
    assert {"config.yaml", "model.safetensors", "predictions.parquet"} < {*kept}
    assert not [name for name in kept if name.startswith("checkpoint")]
    for name in ("checkpoint", "checkpoint.old", "checkpoint.new"):  # of a run that was killed at its very end
        (run_dir / name).mkdir()
    assert quietly(run.main, words) == (0, f"already done: {run_dir}\n", "")
    assert sorted(path.name for path in run_dir.iterdir()) == kept


def test_predicting_into_an_unfinished_run_s_folder_leaves_its_checkpoint(tiny_cache, tiny_settings, tmp_path):
    done = train(stage="bbox", cache=tiny_cache, out=tmp_path / "done", config=tiny_settings)
    run_dir = tmp_path / "begun/bbox-01B/fold0-seed1"
    (run_dir / "checkpoint").mkdir(parents=True)
    words = words_of(tiny_cache, tiny_settings, tmp_path / "begun", "mode=predict", f"weights={done}")
    assert quietly(run.main, words)[0] == 0
    assert (run_dir / "predictions.parquet").is_file() and (run_dir / "checkpoint").is_dir()


# trackers, precision


def test_a_tracker_that_cannot_be_had_is_one_line(tiny_cache, tiny_settings, tmp_path):
    words = words_of(tiny_cache, tiny_settings, tmp_path, "tracker=tensorboard")
    run_dir = tmp_path / "bbox-01B/fold0-seed1"
    run_dir.mkdir(parents=True)
    (run_dir / "tracker").write_text("a file where a folder should be")
    status, _, err = quietly(run.main, words)
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("error: tracker=tensorboard: does not start (") and "give tracker=none" in err
    (run_dir / "tracker").unlink()
    assert quietly(run.main, words)[0] == 0


def test_a_tracker_that_fails_later_stops_no_training(tiny_cache, tiny_settings, tmp_path, capfd):
    words = words_of(tiny_cache, tiny_settings, tmp_path, "tracker=tensorboard", "train.epochs=2")
    run_dir = tmp_path / "bbox-01B/fold0-seed1"
    with planted([run_dir / "tracker"], 4, errno.ENOSPC) as plant:
        status, out, err = quietly(run.main, words)
    assert plant.seen >= 4 and status == 0 and "Traceback" not in out + err + capfd.readouterr().err
    said = [line for line in out.splitlines() if "tracker=" in line]
    assert len(said) == 1 and "no space left on device" in said[0] and str(run_dir / "metrics.jsonl") in said[0]
    steps = [line for line in (run_dir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(steps) == 6


def test_fp16_without_a_gpu_is_said(tiny_cache, tiny_settings, tmp_path):
    status, _, err = quietly(run.main, words_of(tiny_cache, tiny_settings, tmp_path, "train.precision=fp16"))
    line = "error: train.precision=fp16 needs a GPU, and there is none; expected no, bf16 or auto\n"
    assert (status, err) == (2, line)
    assert not list(tmp_path.glob("bbox-*")), "nothing was begun"


# standard output, Ctrl-C


def command(module, *words):
    start = [str(ROOT / "trainer/run.py")] if module == "run" else ["-m", f"trainer.{module}"]
    return [sys.executable, *start, *map(str, words)]


def ended(words, shell):
    """Exit status and stderr of a command whose standard output the shell's words say something about."""
    line = f'"$@" {shell}'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", "-", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def plan_words(places):
    return command("plan", places.folder / "plan.yaml", f"cache={places.cache}", f"out={places.folder / 'whole'}")


def test_a_reader_that_has_gone_is_no_traceback(plan_words):
    for words in ([*plan_words, "format=json"], command("run", "stage=bbox", "show=true"), command("tables")):
        assert ended(words, "| true") == (1, "")


@pytest.mark.parametrize("module", MODULES)
def test_a_full_standard_output_is_one_line(module):
    status, err = ended(command(module, "--help"), "> /dev/full")
    assert (
        status == 2
        and err == "error: standard output: no space left on device; make room, then run the same command again\n"
    )


def test_without_a_standard_output_nothing_else_is_written_to(plan_words, places):
    settings = places.folder / "settings.yaml"
    for words in ([*plan_words, "dry_run=true"], command("run", "stage=bbox", "show=true", f"config={settings}")):
        assert ended(words, ">&-") == (0, "")
        assert ended(words, ">&- 2>&-") == (0, "")


INTERRUPTING = """
import os, signal, sys
seen = []
def hook(event, arguments):
    if event == "import" and (seen or arguments[0] == "cache_schema"):
        seen.append(arguments[0])
        if len(seen) == {nth}:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""


@pytest.mark.parametrize(("module", "nth"), zip(MODULES, (1, 40, 20, 300, 150), strict=True))
def test_ctrl_c_in_the_middle_of_the_imports_is_no_traceback(module, nth, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(nth=nth))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = command(module, "stage=bbox", "tables=a", "source=a", "cache=c", "out=o")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 130 and re.fullmatch("interrupted.*\n", done.stderr), done.stderr


# the lines themselves


def test_an_error_of_the_system_is_told_by_its_path_and_reason(tmp_path):
    lines = {
        OSError(errno.ENOSPC, "x", "a/b"): "a/b: no space left on device; make room, then run the same command again",
        OSError(errno.ESTALE, "x", b"a"): "a: stale file handle",
        OSError(errno.EIO, "x"): "a file or a connection failed (input/output error)",
        OSError("of a library"): "a file or a connection failed (of a library)",
        TimeoutError(): "a file or a connection failed (TimeoutError)",
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/3"): (
            "a file could not be written: the disk may be full; make room, then run the same command again"
        ),
        MemoryError(): "there is not enough memory; end other programs, or use a machine with more",
    }
    for error, line in lines.items():
        assert str(in_one_line(error)) == line and in_one_line(error).exit_status == 2
    assert in_one_line(RuntimeError("shapes differ")) is None and in_one_line(ValueError("x")) is None


def test_names_below_scans_are_not_told(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (tmp_path / "link").symlink_to(scans)
    for folder in (scans, tmp_path / "link"):
        error = in_one_line(OSError(errno.EIO, "x", str(scans / "MUSTER^EVA" / "1.dcm")), folder)
        assert str(error) == f"{folder}: input/output error, for a file or folder below it"


def test_a_full_disk_while_a_checkpoint_is_written_says_so(tiny_cache, tiny_settings, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mount is not permitted here: {mounted.stderr.strip()}")
    try:
        status, _, err = quietly(run.main, words_of(tiny_cache, tiny_settings, folder))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert status == 2 and err.count("\n") == 1, err
    assert err.startswith(f"error: {folder}/bbox-01B/fold0-seed1/") and "no space left on device; make room" in err
