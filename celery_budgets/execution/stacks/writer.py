"""Writes the stacks of the calls of this process, at moments after which they may be lost.

A pool process has two files, named by its pid in the folder of flight records:

- ``PID.stack``, to which a signal of the worker makes faulthandler write. Its handler is in C, and
  needs neither the interpreter lock nor a return to Python code.
- ``PID.notes``, to which the watchdog writes what it sees. It also sees the tasks of an event loop.

On the other pools notes stay in this process.

Physical limit: on systems without Linux's real-time signals or macOS's ``SIGINFO`` there are only
notes.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections import OrderedDict
from time import time
from types import FrameType
from typing import TYPE_CHECKING

from celery_budgets.execution.flight.recorder import ENVIRONMENT
from celery_budgets.execution.stacks.dump import heading, text_of
from celery_budgets.execution.stacks.frames import frames_of, frames_of_others
from celery_budgets.model.per_process import OncePerProcess
from celery_budgets.model.stack import Stack

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call

__all__ = ["MOST_FILE_BYTES", "SIGNAL", "StackWriter", "file_of", "install", "stack_writer"]


logger = logging.getLogger(__name__)


def _unused_signal() -> int | None:
    """Return a signal that neither Celery nor a common library uses."""
    if os.path.isdir("/proc/self"):  # where the worker can check that it is handled
        return int(signal.SIGRTMAX) - 3
    return getattr(signal, "SIGINFO", None)  # its default action is to ignore it


#: Makes a pool process write its stack.
SIGNAL = _unused_signal()
#: Size above which a file is emptied before the next stack, bytes.
MOST_FILE_BYTES = 1 << 18
#: Most stacks of calls in this process that are kept until they are read.
_MOST_LOCAL = 1_000


def file_of(folder: str, pid: int, kind: str) -> str:
    """Return the path of a file of process *pid*: its ``stack`` or its ``notes``."""
    return os.path.join(folder, f"{pid}.{kind}")


class StackWriter:
    """Writes stacks: to the files of this process, or to a table of this process.

    Args:
        folder: Where the files are; ``None``: calls run in the worker itself.
        threads: ``True``: that of the body; ``"all"``: the watchdog notes all threads; ``False``:
            none.
    """

    def __init__(self, folder: str | None, threads: bool | str) -> None:
        self._folder, self._threads = folder, threads
        self._stack: int | None = None
        #: By task id: the stacks of calls in this process.
        self._local: OrderedDict[str, tuple[Stack, ...]] = OrderedDict()
        if folder is not None and threads:
            self._stack = _open(file_of(folder, os.getpid(), "stack"))
            os.ftruncate(self._stack, 0)  # of an earlier process with this pid
            if SIGNAL is not None:
                # Never of all threads: the handler holds no lock that would keep the others from
                # running on while it follows their frames, which crashes the process.
                faulthandler.register(SIGNAL, file=self._stack, all_threads=False, chain=False)

    def note(self, call: Call, moment: str, innermost: FrameType | None) -> None:
        """Write the stack of *call*, whose thread or greenlet is in *innermost* now.

        Args:
            call: The call.
            moment: When: ``soft_time_limit``, ``hard_time_limit`` or ``memory_limit``.
            innermost: Its innermost frame; ``None`` if it is not known.
        """
        if not self._threads:
            return
        frames, now = frames_of(innermost), time()
        if not frames:
            return
        others = frames_of_others(call.thread_id) if self._threads == "all" else ()
        if self._folder is None:
            before = self._local.pop(call.task_id, ())
            self._local[call.task_id] = (*before, Stack(frames, moment, now, others))
            if len(self._local) > _MOST_LOCAL:
                self._local.popitem(last=False)
            return
        text = heading(moment, call.started_at, now) + text_of(frames, others)
        notes = _open(file_of(self._folder, os.getpid(), "notes"))
        try:
            os.write(notes, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(notes)

    def take(self, task_id: str) -> tuple[Stack, ...]:
        """Return and forget the stacks of a call that ran in this process."""
        return self._local.pop(task_id, ())


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_size > MOST_FILE_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor


#: Returns the writer of this process; until one is installed, it writes nothing.
stack_writer = OncePerProcess(lambda: StackWriter(None, threads=False))


def install(threads: bool | str, *, in_pool_process: bool) -> None:
    """Make this process write the stacks of its calls.

    Args:
        threads: The setting ``budgets_stacks``.
        in_pool_process: Whether the worker is another process.
    """
    folder = os.environ.get(ENVIRONMENT) if in_pool_process else None
    if not threads or (in_pool_process and folder is None):
        return
    try:
        stack_writer.put(StackWriter(folder, threads))
    except (OSError, ValueError, RuntimeError) as exc:
        logger.warning("budgets.no_flight_record: a kill of this process says less: %s", exc)
