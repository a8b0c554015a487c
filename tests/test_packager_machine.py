"""How much of a machine is ours: affinity, a container's quota and limit, what the kernel says is free."""

import os

import pytest

from packager import machine


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Writes what the kernel's files hold."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def write(**files):
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content + "\n")

    return write


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_containers_quota_counts_as_cores(kernel, quota, cores):
    kernel(cpu_max=quota)
    assert machine.usable_cores() == cores


def test_without_a_quota_the_cores_are_those_of_the_affinity(kernel):
    assert machine.usable_cores() == 8


def test_memory_is_the_least_of_what_is_free_and_what_a_container_may_still_take(kernel):
    kernel(meminfo="MemTotal: 9000000 kB\nMemAvailable: 4000000 kB")
    assert machine.available_bytes() == 4_096_000_000
    kernel(memory_max="max", memory_current="5")
    assert machine.available_bytes() == 4_096_000_000
    kernel(memory_max="3000000000", memory_current="1000000000")
    assert machine.available_bytes() == 2_000_000_000
    kernel(memory_stat="anon 100\nactive_file 200000000\ninactive_file 300000000")
    assert machine.available_bytes() == 2_500_000_000
    kernel(memory_max="3000000000", memory_current="3500000000", memory_stat="")
    assert machine.available_bytes() == 0


def test_a_kernel_that_does_not_tell_has_all_its_memory_free(kernel):
    assert machine.available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
