"""Cores and memory as a container's limits leave them, in control groups of both versions."""

import mmap
import os
import resource

import pytest

from fastcifar.machine import GIB, cores, free_memory, peak_memory, resident_memory, restart_peak, total_memory

MEMINFO = f"MemTotal:       {8 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {6 * 2**20} kB\n"
ONE = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": str(2**63 - 4096),
    "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "1",
    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(4 * GIB),
    "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(3 * GIB),
    "sys/fs/cgroup/memory/a/memory.stat": f"cache 5\ninactive_file 7\ntotal_inactive_file {2 * GIB}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
}
TWO = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/b/memory.max": "max",
    "sys/fs/cgroup/a/memory.max": str(4 * GIB),
    "sys/fs/cgroup/a/memory.current": str(3 * GIB),
    "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
    "sys/fs/cgroup/a/b/cpu.max": "max 100000",
    "sys/fs/cgroup/a/cpu.max": "50000 100000",
}
MINE = {"ONE": (ONE, 0.5, 4 * GIB, 3 * GIB), "TWO": (TWO, 0.5, 4 * GIB, 3 * GIB)}


def written(root, files):
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("name", MINE)
def test_the_smallest_limit_of_a_container_counts(tmp_path, name):
    files, *limits = MINE[name]
    written(tmp_path, files)
    assert [cores(tmp_path), total_memory(tmp_path), free_memory(tmp_path)] == limits


def test_a_limit_of_the_process_counts(tmp_path, monkeypatch):
    written(tmp_path, {"proc/self/statm": "1000 5 4 3 2 1 0\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB, GIB) if kind == resource.RLIMIT_AS else None)
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (GIB, GIB - 1000 * resource.getpagesize())


def test_without_limits_it_is_the_machine(tmp_path):
    written(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (8 * GIB, 6 * GIB)
    assert cores(tmp_path) == len(os.sched_getaffinity(0))


def test_a_peak_is_counted_anew(tmp_path):
    if not restart_peak():
        pytest.skip("this system does not count it")
    before = peak_memory()
    with mmap.mmap(-1, 64 * 2**20) as block:  # the system's own, of no memory that was kept from before
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert peak_memory() - before > 48 * 2**20
    assert restart_peak() and peak_memory() - before < 48 * 2**20 and resident_memory() <= peak_memory()
    assert not restart_peak(tmp_path) and (peak_memory(tmp_path), resident_memory(tmp_path)) == (None, None)


def test_what_is_not_known_is_none(tmp_path):
    assert (total_memory(tmp_path), free_memory(tmp_path)) == (None, None)
    assert cores(tmp_path) >= 1
