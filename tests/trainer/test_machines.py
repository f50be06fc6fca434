"""A run over several machines ends on all of them when one is lost, frozen, unplugged or wrong, and goes on with the same command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from endings import ROOT, Watched
from torch.distributed import PrefixStore, TCPStore
from trainings import same_weights

from cache_schema import Cache
from cache_schema.errors import UsageError
from preprocess.labels import replace_labels
from trainer.process.machines import SILENCE, Machines
from trainer.settings.layers import load

SLOW = ROOT / "tests/trainer/slow_main.py"
BEAT, QUIET = 0.05, 1.0
"""seconds, instead of those of a real run"""
STORE_PORT = 8765
MINUTE, STARTED = 60, 400
"""seconds in which a loss must have ended all, and in which a launch has trained a little, also on a busy machine"""


class Run:
    """Processes of a run in threads, with a real store between them."""

    def __init__(self, world):
        self.server, self.lines = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), {}
        self.machines = [self.join(rank, world) for rank in range(world)]

    def join(self, rank, world):
        store = PrefixStore("run", TCPStore("127.0.0.1", self.server.port, is_master=False))

        def end(line):
            self.lines[rank] = line
            self.machines[rank]._stopped.set()

        machine = Machines(store, rank, world, end, where="127.0.0.1", beat=BEAT, silence=QUIET)
        machine.connected = True
        return machine

    def wait_for_ends(self, *ranks):
        until = time.monotonic() + 20
        while set(self.lines) != set(ranks) and time.monotonic() < until:
            time.sleep(BEAT)
        return [self.lines.get(rank, "") for rank in ranks]


@pytest.fixture
def three():
    run = Run(3)
    yield run
    for each in run.machines:
        each._stopped.set()


def test_a_process_that_falls_silent_ends_all_others_with_one_line(three):
    time.sleep(5 * BEAT)
    three.machines[2]._stopped.set()
    first, second = three.wait_for_ends(0, 1)
    assert first.startswith("rank 2 on ") and "has been silent for 1 s" in first and "start the same command" in first
    assert second == first


def test_a_main_process_that_falls_silent_ends_the_others(three):
    time.sleep(5 * BEAT)
    three.machines[0]._stopped.set()
    assert all(line.startswith("rank 0 on ") for line in three.wait_for_ends(1, 2))


def test_a_store_that_has_gone_ends_all(three):
    time.sleep(5 * BEAT)
    del three.server
    lines = three.wait_for_ends(0, 1, 2)
    assert all(line.startswith("the launcher of the main machine (127.0.0.1) has ended") for line in lines)


def test_the_error_of_one_process_is_the_line_of_all(three):
    began = time.monotonic()
    three.machines[1].failed("/cache: there is no cache")
    assert all(line.endswith(": /cache: there is no cache") for line in three.wait_for_ends(0, 2))
    assert time.monotonic() - began < 10


def test_a_main_process_that_works_alone_is_not_lost_and_the_others_wait_for_it(three):
    ends = [threading.Thread(target=three.machines[rank].finish) for rank in (1, 2)]
    for each in ends:
        each.start()
    time.sleep(3 * QUIET)
    assert not three.lines and all(each.is_alive() for each in ends)
    three.machines[0].finish()
    for each in ends:
        each.join(10)
    assert not three.lines and not any(each.is_alive() for each in ends)


def test_the_main_process_decides_and_machines_that_differ_are_named(three):
    found = {}

    def agree(rank, version):
        try:
            found[rank] = three.machines[rank].agree({"the version of torch": version}, decision=rank == 0)
        except UsageError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=agree, args=given) for given in ((0, "2.15"), (1, "2.15"), (2, "2.14"))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert found[0] is found[1] is True
    assert found[2].startswith("the version of torch is not the same on all machines: 2.14 on ")


@contextmanager
def two_machines():
    """Names of two network namespaces joined by a cable, whose ends are called `cable`."""
    names = [f"cspine{os.getpid()}-{number}" for number in (0, 1)]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("makes network namespaces, which needs root and iproute2")
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
                pytest.skip("network namespaces cannot be made here")
        ends = ["type", "veth", "peer", "name", "cable", "netns", names[1]]
        ip("link", "add", "cable", "netns", names[0], *ends)
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def served(machines, folder):
    """The address of a folder that each machine reaches at its own loopback: a store, for there are no other shared ones."""
    words = [sys.executable, str(ROOT / "tests/servers/file_server.py"), str(folder), str(STORE_PORT)]
    with ExitStack() as stack:
        for name in machines:
            command = ["ip", "netns", "exec", name, *words]
            server = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(server.stdin.close)
            assert server.stdout.readline()
        yield f"http://127.0.0.1:{STORE_PORT}"


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Launch:
    """The same command on both machines, or with another cache on the second one."""

    def __init__(self, machines, folder, words, caches=(), script=ROOT / "trainer/run.py"):
        folder.mkdir(parents=True, exist_ok=True)
        self.said = [folder / f"machine-{number}.txt" for number in (0, 1)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
        launcher += ["--num_processes", "2", "--main_process_ip", "10.77.0.1", "--main_process_port", "29511"]
        self.watched = []
        for number, name in enumerate(machines):
            own = ["--machine_rank", str(number), str(script), *words]
            own += [f"cache={caches[number]}"] if caches else []
            command = ["ip", "netns", "exec", name, *launcher, *own]
            self.watched.append(Watched.start(command, self.said[number], GLOO_SOCKET_IFNAME="cable"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self.watched:
            each.end_all()

    def signal(self, machine, number):
        for pid in self.watched[machine].living():
            os.kill(pid, number)

    def statuses(self, seconds=STARTED + 2 * SILENCE):
        return [each.process.wait(seconds) for each in self.watched]

    def errors(self, machine):
        """Its lines of ours, after a check that its training printed no traceback; the launcher prints one of its own."""
        text = self.said[machine].read_text()
        assert "trainer/" not in "".join(line for line in text.splitlines() if line.lstrip().startswith("File ")), text
        return [line for line in text.splitlines() if line.startswith(("error:", "interrupted"))]

    def ends_on(self, machine, seconds=MINUTE):
        """The one line of a machine that ends by itself with status 1, and leaves nothing."""
        assert self.watched[machine].process.wait(seconds) == 1
        assert not self.watched[machine].what_is_left()
        (line,) = self.errors(machine)
        return line


def until_step(launch, run_dir, step):
    """Waits for a checkpoint at or after this step. Returns its step."""
    until = time.monotonic() + STARTED
    while time.monotonic() < until and all(each.process.poll() is None for each in launch.watched):
        try:
            if (found := json.loads((run_dir / "checkpoint/position.json").read_text())["step"]) >= step:
                return found
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError([said.read_text()[-2000:] for said in launch.said])


@pytest.mark.check
def test_a_lost_machine_ends_the_other_and_the_same_command_goes_on_to_the_same_weights(
    tiny_cache, tiny_settings, tmp_path
):
    """The cache is in a store. The uninterrupted run's main process works alone for longer than a lost one may be silent, twice."""
    common = ["stage=bbox", f"cache=http://127.0.0.1:{STORE_PORT}", f"config={tiny_settings}", "deterministic=true"]
    common += ["train.epochs=20", "train.evaluate_every=10", "train.checkpoint_minutes=0.005"]
    runs = [load([*common, f"out={tmp_path / name}"], must_exist=False).run_dir for name in ("whole", "lost")]
    words = [*common, f"out={tmp_path / 'lost'}"]
    with two_machines() as machines, served(machines, tiny_cache):
        with Launch(machines, tmp_path, [*common, f"out={tmp_path / 'whole'}"], script=SLOW) as launch:
            assert launch.statuses() == [0, 0], [said.read_text() for said in launch.said]

        with Launch(machines, tmp_path, words) as launch:
            step = until_step(launch, runs[1], 5)
            launch.signal(1, signal.SIGKILL)
            line = launch.ends_on(0)
            assert line.startswith("error: rank 1 on ") and "start the same command again on every machine" in line

        with Launch(machines, tmp_path, words) as launch:
            step = until_step(launch, runs[1], step + 5)
            launch.signal(0, signal.SIGSTOP)
            assert launch.ends_on(1).startswith("error: the launcher of the main machine (10.77.0.1:29511) has not")
            launch.signal(0, signal.SIGCONT)
            launch.ends_on(0)

        with Launch(machines, tmp_path, words) as launch:
            step = until_step(launch, runs[1], step + 5)
            ip("-n", machines[1], "link", "set", "cable", "down")
            assert launch.ends_on(0).startswith("error: rank 1 on ")
            assert launch.ends_on(1).startswith("error: the launcher of the main machine")
            ip("-n", machines[1], "link", "set", "cable", "up")

        with Launch(machines, tmp_path, words) as launch:
            step = until_step(launch, runs[1], step + 5)
            launch.signal(0, signal.SIGKILL)
            assert launch.ends_on(1, 30).startswith("error: the launcher of the main machine")

        with Launch(machines, tmp_path, words) as launch:
            assert launch.statuses() == [0, 0], [said.read_text() for said in launch.said]
        assert "resuming at step" in launch.said[0].read_text()
    assert same_weights(*runs)
    whole, lost = ((run / "predictions.parquet").read_bytes() for run in runs)
    assert whole == lost


@pytest.mark.check
def test_what_is_wrong_on_one_machine_is_one_line_on_each(tiny_cache, tiny_settings, tmp_path):
    words = ["stage=bbox", f"config={tiny_settings}", f"out={tmp_path / 'runs'}"]
    other = shutil.copytree(tiny_cache, tmp_path / "other")
    labels = Cache(other).labels.rename(columns={"id": "StudyInstanceUID"})
    labels.assign(fold=(labels["fold"] + 1) % 2).to_csv(tmp_path / "other.csv", index=False)
    replace_labels(other, tmp_path / "other.csv", folds=tmp_path / "other.csv")
    with two_machines() as machines:
        with Launch(machines, tmp_path, words, [tiny_cache, "/nowhere"]) as launch:
            lines = launch.ends_on(0, STARTED), launch.ends_on(1)
        assert lines[1].startswith("error: cache=/nowhere: ") and lines[0].endswith(lines[1].removeprefix("error: "))
        with Launch(machines, tmp_path, words, [tiny_cache, other]) as launch:
            lines = launch.ends_on(0, STARTED), launch.ends_on(1)
        assert all("is not the same on all machines" in line for line in lines), lines
        words += [f"cache={tiny_cache}", "train.epochs=1000", "train.checkpoint_minutes=0.005"]
        with Launch(machines, tmp_path, words) as launch:
            until_step(launch, load(words, must_exist=False).run_dir, 3)
            launch.watched[1].process.send_signal(signal.SIGTERM)
            assert launch.ends_on(0).startswith("error: rank 1 on ")
            assert launch.watched[1].process.wait(60) and launch.errors(1)[0].startswith("interrupted")
