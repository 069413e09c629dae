"""The folder of flight records: one small file per pool process, in memory where possible.

A worker locks its folder as long as it lives, so that later workers recognize and remove the
folder of a killed one. See also: :mod:`celery_budgets.execution.flight.recorder`.
"""

from __future__ import annotations

import fcntl
import glob
import mmap
import os
import shutil
import stat
import tempfile

__all__ = ["lock", "make", "map_file", "sweep"]

PREFIX = "celery-budgets-flights-"
_MEMORY = "/dev/shm"


def make() -> tuple[str, int | None]:
    """Create and lock a folder for the records of this process's pool.

    Returns:
        Its path, and the descriptor of its lock: close it after the folder is removed.
    """
    try:
        return _make_in(_MEMORY)
    except OSError:  # missing, full, or read-only
        return _make_in(tempfile.gettempdir())


def _make_in(base: str) -> tuple[str, int | None]:
    # Under a name that no sweep matches, until it is locked.
    hidden = tempfile.mkdtemp(prefix=f".{PREFIX}{os.getpid()}-", dir=base)
    held = lock(hidden)
    folder = os.path.join(base, os.path.basename(hidden).removeprefix("."))
    os.rename(hidden, folder)
    return folder, held


def lock(folder: str) -> int | None:
    """Lock *folder* for the life of this process; ``None`` if another process holds the lock."""
    # Another user's folder may have a symbolic link in place of the lock file.
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(os.path.join(folder, "lock"), flags, 0o600)
    except OSError:
        return None
    try:
        # Not by pid: another container may share this file system, but not its pids.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sweep() -> None:
    """Remove the folders that killed workers of this user have left."""
    for base in (_MEMORY, tempfile.gettempdir()):
        for folder in glob.glob(os.path.join(base, f"{PREFIX}*")):
            if _is_ours(folder):
                _remove_if_left(folder)


def _is_ours(folder: str) -> bool:
    """Return whether this user owns *folder* and no other user can write to it."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    private = not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and private


def _remove_if_left(folder: str) -> None:
    descriptor = lock(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def map_file(path: str, *, create: bool) -> mmap.mmap:
    """Map the record at *path* into memory.

    Args:
        path: The file.
        create: Create it, or reuse and clear that of an earlier process with this pid.

    Raises:
        OSError: There is no such file, or no space for one.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if create:
            # Never truncated: a process that has it mapped would die of SIGBUS. With its space
            # reserved: otherwise a write to the map would die of SIGBUS on a full disk.
            reserve = getattr(os, "posix_fallocate", None)  # not on macOS
            if reserve is not None:
                reserve(descriptor, 0, mmap.PAGESIZE)
            elif os.fstat(descriptor).st_size < mmap.PAGESIZE:
                os.ftruncate(descriptor, mmap.PAGESIZE)
        record = mmap.mmap(descriptor, mmap.PAGESIZE)
    finally:
        os.close(descriptor)
    if create:
        record[:] = bytes(mmap.PAGESIZE)
    return record
