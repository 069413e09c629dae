"""The memory limit of a process: cgroup v2, then v1, from a folder that stands for the root."""

from __future__ import annotations

import pytest

from celery_budgets.execution.memory.cgroup import physical_memory, tightest_cgroup
from celery_budgets.units import GIB, MIB

PHYSICAL = 8 * GIB


@pytest.fixture
def write(tmp_path):
    """Write files below the root, by name."""

    def written(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tightest_cgroup(tmp_path, PHYSICAL)

    return written


def test_version_2_in_a_container(write):
    """The mount is the container's own group; the cache that can be dropped is left out."""
    group = write(
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 512 * MIB,
            "sys/fs/cgroup/memory.current": 300 * MIB,
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * MIB}",
        }
    )
    assert (group.version, group.limit, group.use()) == (2, 512 * MIB, 200 * MIB)


def test_the_tightest_group_on_the_way_up_counts(write):
    """A pod may have less than its container."""
    group = write(
        {
            "proc/self/cgroup": "0::/pod/container",
            "sys/fs/cgroup/pod/container/memory.max": "max",
            "sys/fs/cgroup/pod/memory.max": 1 * GIB,
            "sys/fs/cgroup/memory.max": 2 * GIB,
            "sys/fs/cgroup/pod/memory.current": 5,
        }
    )
    assert group.folder.name == "pod"
    assert (group.limit, group.use()) == (1 * GIB, 5)


def test_version_1(write):
    """Also where another hierarchy is mounted as version 2 without the memory controller."""
    group = write(
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/\n0::/",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": 256 * MIB,
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": 100 * MIB,
            "sys/fs/cgroup/memory/docker/abc/memory.stat": f"total_inactive_file {MIB}",
        }
    )
    assert (group.version, group.limit, group.use()) == (1, 256 * MIB, 99 * MIB)


def test_version_1_where_the_path_is_the_hosts(write):
    """Without a namespace of its own a container sees its group only as the mount itself."""
    group = write(
        {
            "proc/self/cgroup": "4:memory:/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 256 * MIB,
        }
    )
    assert group.limit == 256 * MIB
    assert group.use() is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": PHYSICAL},
        # What version 1 says for "no limit".
        {
            "proc/self/cgroup": "4:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 0x7FFFFFFFFFFFF000,
        },
    ],
)
def test_no_limit(write, files):
    """No group at all, or none below what the machine has."""
    assert write(files) is None


def test_this_machine_has_memory():
    """The real root can be read, whatever it says."""
    assert physical_memory() > 64 * MIB
    tightest_cgroup()
