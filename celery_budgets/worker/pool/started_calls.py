"""Detects started calls where Celery takes unaccepted ones for calls that have not begun.

At a stop or a lost connection it drops every call that no process has accepted (celery.
concurrency.asynpool.AsynPool.flush, 5.7), since its message is redelivered. A call that is already
written to a process begins nevertheless: it would run twice, even if it must not, and its process
would wait 30 s at its exit for its result to be read (billiard.pool.Worker.
_ensure_messages_consumed). So the messages of the processes are read first, until it is known which
calls have begun. At a reconnect, Celery 5.5 drops running calls too; they are restored.

When a process dies, Celery gives its unaccepted call to another one (AsynPool.on_partial_read), and
the call runs twice if its acceptance was not read yet. It is read first here too.

See also: :mod:`celery_budgets.worker.lanes.dropped_calls`, for a process that does not report in
time.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
from inspect import isgenerator
from time import monotonic
from typing import Any

from celery.concurrency.asynpool import _select

__all__ = ["StartedCalls"]

logger = logging.getLogger(__name__)

#: Longest time for a process to begin a call that is written to it, seconds.
BEGIN_SECONDS = 1.0


class StartedCalls:
    """Wraps ``TaskPool.flush`` and ``AsynPool.on_job_process_down`` to detect started calls.

    Args:
        pool: A ``celery.concurrency.prefork.TaskPool`` that has started; it calls
            ``AsynPool.flush`` by an attribute of its own.
        hub: The worker's event loop.
    """

    def __init__(self, pool: Any, hub: Any) -> None:
        self._task_pool, self._pool = pool, pool._pool
        self._hub = hub
        self._celery_flush = pool.flush
        self._celery_process_down = self._pool.on_job_process_down

    def attach(self) -> None:
        """Replace both methods, unless a process asks before it begins a call (synack)."""
        if not self._pool.synack:
            self._task_pool.flush = self.flush
            self._pool.on_job_process_down = self.process_down

    def process_down(self, job: Any, pid_gone: int) -> None:
        """Read what the process of *job* has reported, then let Celery settle the call.

        billiard.pool.Pool._join_exited_workers reads that of the processes that it has found dead,
        and then takes the calls of all dead ones, also of one that has died in between.
        """
        process = job._write_to
        if not job._accepted and process is not None and not process._is_alive():
            self._pool.process_flush_queues(process)
            if job._accepted:
                return  # the next round finds its process dead, and the call lost
        self._celery_process_down(job, pid_gone)

    def flush(self) -> None:
        """Find out which calls have begun, then let Celery drop the others."""
        deadline = monotonic() + BEGIN_SECONDS
        while (jobs := self._on_their_way()) and (left := deadline - monotonic()) > 0:
            self._turn(jobs, left)
        # Before the jobs of an ended process are dropped: else its successor inherits its
        # pipes, with what was written to them (AsynPool.on_partial_read).
        self._pool.maintain_pool()
        running = {number: job for number, job in self._pool._cache.items() if job._accepted}
        self._celery_flush()
        self._keep(running)

    def _on_their_way(self) -> list[Any]:
        """Return the jobs that are fully or partly written to a process and not accepted.

        Only the next one of each process: without fair scheduling (``optimization="fast"``) there
        may be others behind the one that it runs, which wait for long.
        """
        jobs = list(self._pool._cache.values())
        busy = {job._worker_pid for job in jobs if job._accepted}
        return [
            job for job in jobs
            if job._write_to is not None and not job._accepted
            and job._write_to.pid not in busy and job._write_to._is_alive()
        ]  # fmt: skip

    def _turn(self, jobs: list[Any], seconds: float) -> None:
        """Wait for the processes of *jobs*; read and write one message per ready descriptor.

        Mirrors kombu.asynchronous.hub.Hub.create_loop. Differs: only for these descriptors.
        """
        readers = {job._write_to.outqR_fd for job in jobs}
        # By sentinel: the worker holds the write end of each pipe too, and so never reads EOF.
        ends = {job._write_to._popen.sentinel for job in jobs}
        writing = {
            job._write_to.inqW_fd: writer for job in jobs
            if (writer := job._writer()) in self._pool._active_writers
        }  # fmt: skip
        readable, writable, _ = _select(readers | ends, set(writing), timeout=seconds)
        for descriptor in writable:
            self._go_on(descriptor, writing[descriptor])
        for descriptor in readable & readers:
            read, arguments = self._hub.readers.get(descriptor) or (
                self._pool.handle_result_event, (descriptor,),
            )  # fmt: skip
            self._go_on(descriptor, read, arguments)

    def _go_on(self, descriptor: int, work: Any, arguments: tuple[Any, ...] = ()) -> None:
        """Read or write one message; *work* is the generator of a partly processed one."""
        try:
            if isgenerator(work):
                next(work, None)
            else:
                work(*arguments)
        except Exception:
            self._hub.remove(descriptor)
            logger.exception("budgets.begun_unknown: a call that has begun may run twice")

    def _keep(self, running: dict[int, Any]) -> None:
        """Restore the running calls, and the processes that they occupy."""
        for number, job in running.items():
            if not job.ready():
                self._pool._cache.setdefault(number, job)
                if job._write_to is not None and job._write_to._is_alive():
                    self._pool._busy_workers.add(job._write_to.inqW_fd)
