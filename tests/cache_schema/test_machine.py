"""The cores and the memory of a process are also those that its control groups allow."""

import os
import subprocess
import sys

import pytest

from cache_schema.machine import Machine, this_machine

GIB = 2**30
CORES = len(os.sched_getaffinity(0))


def tree(root, files):
    for name, text in {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * GIB >> 10} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_groups_it_is_the_machine(tmp_path):
    assert this_machine(tree(tmp_path, {})) == (CORES, 8 * GIB)
    found = this_machine()
    assert 1 <= found.cores <= CORES and found.memory > 100 << 20


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}", "sys/fs/cgroup/a/b/memory.current": f"{GIB}"}, GIB),
        ({"sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n", "sys/fs/cgroup/a/memory.current": "0\n"}, 2 * GIB),
        ({"sys/fs/cgroup/memory.max": f"{GIB}", "sys/fs/cgroup/memory.current": f"{GIB + 5}"}, 0),
        ({"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/b/memory.current": f"{GIB}"}, 8 * GIB),
        (
            {
                "sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}",
                "sys/fs/cgroup/a/b/memory.current": f"{GIB}",
                "sys/fs/cgroup/a/b/memory.stat": f"anon 7\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n",
            },
            GIB + GIB // 2 + GIB // 4,
        ),
    ],
)
def test_the_tightest_group_above_a_process_bounds_its_memory_and_files_that_are_cached_count_as_free(
    files, free, tmp_path
):
    found = this_machine(tree(tmp_path, {"proc/self/cgroup": "0::/a/b\n", **files}))
    assert found == (CORES, free)


def test_a_container_of_the_older_groups_is_bounded_though_it_names_its_group_by_the_path_outside(tmp_path):
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert this_machine(tree(tmp_path, files)) == (1, 2 * GIB)


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("150000 100000", 2), ("max 100000", CORES)])
def test_a_quota_bounds_the_cores_rounded_up(quota, cores, tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota}
    assert this_machine(tree(tmp_path, files)).cores == min(cores, CORES)


def test_several_processes_share_it():
    assert Machine(4, 90).shared(3) == (1, 30) and Machine(1, 90).shared(2) == (1, 45)


IN_A_GROUP = """
own=$(grep :memory: /proc/self/cgroup | cut -d: -f3)
group=/sys/fs/cgroup/memory$own/cspine-test-$$
limit=memory.limit_in_bytes
if test -z "$own"; then
    group=/sys/fs/cgroup$(grep ^0:: /proc/self/cgroup | cut -d: -f3)/cspine-test-$$
    limit=memory.max
fi
mkdir "$group" || exit 77
trap 'echo $$ > "$group/../cgroup.procs"; rmdir "$group"' EXIT
{ echo 1073741824 > "$group/$limit" && echo $$ > "$group/cgroup.procs"; } || exit 77
"$@"
"""


def test_a_real_group_with_a_limit_bounds_the_memory():
    code = "from cache_schema.machine import this_machine; print(this_machine().memory)"
    command = ["sh", "-c", IN_A_GROUP, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"control groups cannot be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert GIB // 2 < int(done.stdout) < GIB
