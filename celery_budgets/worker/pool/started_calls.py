"""Calls that have begun when a worker stops, and when its connection to the broker is lost.

Celery drops then every call that no process has accepted (celery.concurrency.asynpool.AsynPool.
flush, 5.7): its message comes again. One that is written to a process already begins all the
same. It would run twice, also one that must not, and its process would wait 30 s before it
leaves, for somebody to read its result (billiard.pool.Worker._ensure_messages_consumed). So what
the processes say is read first, until it is known which calls have begun. Celery 5.5 drops those
that run too, at a reconnect; they are put back.

See also: :mod:`celery_budgets.worker.lanes.dropped_calls`, for a process that says nothing in time.

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

#: Longest that a process may take to begin with a call that is written to it, seconds.
BEGIN_SECONDS = 1.0


class StartedCalls:
    """Stands in front of what a pool does before its calls come again from the broker.

    Args:
        pool: A ``celery.concurrency.prefork.TaskPool`` that has started; it calls
            ``AsynPool.flush`` by an attribute of its own.
        hub: The worker's event loop.
    """

    def __init__(self, pool: Any, hub: Any) -> None:
        self._task_pool, self._pool = pool, pool._pool
        self._hub = hub
        self._celery_flush = pool.flush

    def attach(self) -> None:
        """Replace TaskPool.flush, where a process does not ask before it begins (synack)."""
        if not self._pool.synack:
            self._task_pool.flush = self.flush

    def flush(self) -> None:
        """Hear which calls have begun, then let Celery drop those that have not."""
        deadline = monotonic() + BEGIN_SECONDS
        while (jobs := self._on_their_way()) and (left := deadline - monotonic()) > 0:
            self._turn(jobs, left)
        # Before the jobs of a process that has ended are dropped: else its pipes go on to the
        # next one, with what was written to them (AsynPool.on_partial_read).
        self._pool.maintain_pool()
        running = {number: job for number, job in self._pool._cache.items() if job._accepted}
        self._celery_flush()
        self._keep(running)

    def _on_their_way(self) -> list[Any]:
        """Return the jobs that a process has, or has the beginning of, and has not accepted.

        Only those that it takes next: where the scheduling is not fair (``optimization="fast"``)
        there may be others behind the one that it runs, which wait for long.
        """
        jobs = list(self._pool._cache.values())
        busy = {job._worker_pid for job in jobs if job._accepted}
        return [
            job for job in jobs
            if job._write_to is not None and not job._accepted
            and job._write_to.pid not in busy and job._write_to._is_alive()
        ]  # fmt: skip

    def _turn(self, jobs: list[Any], seconds: float) -> None:
        """Wait for the processes of *jobs*; read and write what can be, a message each.

        Mirrors kombu.asynchronous.hub.Hub.create_loop, for those descriptors alone.
        """
        readers = {job._write_to.outqR_fd for job in jobs}
        # The worker has an end of each pipe that a process writes, and so sees no end of it.
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
        """Read or write one message; *work* is a generator in the middle of one."""
        try:
            if isgenerator(work):
                next(work, None)
            else:
                work(*arguments)
        except Exception:
            self._hub.remove(descriptor)
            logger.exception("budgets.begun_unknown: a call that has begun may run twice")

    def _keep(self, running: dict[int, Any]) -> None:
        """Put back the calls that run, with the processes that they keep busy."""
        for number, job in running.items():
            if not job.ready():
                self._pool._cache.setdefault(number, job)
                if job._write_to is not None and job._write_to._is_alive():
                    self._pool._busy_workers.add(job._write_to.inqW_fd)
