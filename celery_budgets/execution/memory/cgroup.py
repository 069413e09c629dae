"""Finds the memory limit of this process: its cgroup's limit, or the machine's memory.

Covers: cgroup v2, then v1, including the limits of all parent groups; physical memory.
Does not cover: swap, and the reaction to a limit
(:mod:`celery_budgets.worker.memory.gate`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Cgroup", "physical_memory", "tightest_cgroup"]


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup with a memory limit that contains this process, directly or as an ancestor."""

    #: Its folder, such as ``/sys/fs/cgroup/kubepods/pod1``.
    folder: Path
    version: int
    #: Bytes; below the memory of the machine.
    limit: int

    def use(self) -> int | None:
        """Return the bytes that count towards the limit and cannot be reclaimed.

        The kernel counts its page cache too, and reclaims the inactive part of it before it kills
        a process: that part is left out, as in Kubernetes and Docker.
        """
        current, inactive = _FILES[self.version].current, _FILES[self.version].inactive
        used = _number(self.folder / current)
        if used is None:
            return None
        return max(0, used - _line(self.folder / "memory.stat", inactive))


@dataclass(frozen=True, slots=True)
class _Files:
    mounts: tuple[str, ...]
    limit: str
    current: str
    inactive: str


_FILES = {
    2: _Files(
        ("sys/fs/cgroup", "sys/fs/cgroup/unified"),
        "memory.max", "memory.current", "inactive_file",
    ),
    1: _Files(
        ("sys/fs/cgroup/memory",),
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    ),
}  # fmt: skip


def physical_memory() -> int:
    """Return the memory of the machine, bytes."""
    return int(psutil.virtual_memory().total)


def tightest_cgroup(root: Path = Path("/"), physical: int | None = None) -> Cgroup | None:
    """Return the cgroup with the lowest limit for this process; ``None`` without a limit.

    Args:
        root: Where ``proc`` and ``sys`` are; another folder in tests.
        physical: Memory of the machine, bytes: a limit at or above it is none.
    """
    most = physical_memory() if physical is None else physical
    for version, files in _FILES.items():
        found = [
            Cgroup(folder, version, limit)
            for folder in _folders(root, version, files)
            if (limit := _number(folder / files.limit)) is not None and limit < most
        ]
        if found:
            return min(found, key=lambda group: group.limit)
    return None


def _folders(root: Path, version: int, files: _Files) -> Iterator[Path]:
    """Yield the folder of this process's group and those above it.

    In a container without a cgroup namespace the path is the host's, of which the mount shows
    only the end: then missing folders are skipped, and the mount itself is the container's
    group.
    """
    own = _own_path(root, version)
    if own is None:
        return
    for mount in files.mounts:
        top = root / mount
        folder = top / own.lstrip("/")
        while folder.is_relative_to(top):
            yield folder
            if folder == top:
                break
            folder = folder.parent


def _own_path(root: Path, version: int) -> str | None:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (version == 2 and number == "0" and not controllers) or (
            version == 1 and "memory" in controllers.split(",")
        ):
            return os.path.normpath(path)
    return None


def _number(path: Path) -> int | None:
    """Return the number in a file; ``None`` for "max" and if there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _line(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
