"""Threads that run on past their hard limit: given up, counted, and in the end left behind.

A thread cannot be killed. Its call is over for everybody else: the caller has its result and
the pool has another thread. When too many run on, the worker takes no more work, finishes what
it has and exits with :data:`EXIT_CODE`, for its supervisor to start it anew.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from concurrent.futures import thread as futures
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.worker import state

from celery_budgets.execution.call import Call
from celery_budgets.telemetry import spans
from celery_budgets.worker.calls.roster import Roster

if TYPE_CHECKING:
    from celery_budgets.worker.delivery import Delivery

__all__ = ["EXIT_CODE", "AbandonedThreads"]

logger = logging.getLogger(__name__)

#: Exit code of a worker that left because of abandoned threads (``EX_TEMPFAIL``).
EXIT_CODE = 75


class AbandonedThreads:
    """Gives up calls of one worker whose threads run on.

    Args:
        worker: The Celery worker; its pool may not be there yet.
        roster: The calls that the worker has in hand.
        most: Abandoned threads that the worker lives with.
        embedded: Does the worker run in a thread of a program, which it may not end?
    """

    def __init__(self, worker: Any, roster: Roster, most: int, *, embedded: bool) -> None:
        self._worker = worker
        self._roster = roster
        self._most = most
        self._embedded = embedded
        self._lock = threading.Lock()
        self._running_on: set[int] = set()
        #: Threads that have come back, each waiting to be needed.
        self._parked: list[tuple[threading.Thread, threading.Event]] = []
        signals.worker_shutdown.connect(self._part, sender=worker)

    @property
    def count(self) -> int:
        """Threads that run on now."""
        return len(self._running_on)

    def abandon(self, call: Call) -> None:
        """End *call* for everybody but its thread; from the watchdog, which must not block."""
        request = self._roster.in_hand.get((call.task_id, call.due_at))
        if request is not None:
            # Before its thread can come back and tell of another end.
            request.given_up = True
        with self._lock:
            self._running_on.add(id(call))
            count = len(self._running_on)
        threading.Thread(
            target=self._settle, args=(call, request, count),
            name="celery-budgets-abandon", daemon=True,
        ).start()  # fmt: skip

    def returned(self, call: Call) -> None:
        """Count the thread of *call* no more, and keep it until the pool needs one again.

        Called in that very thread, whose place is taken. Back in the pool it would be one thread
        more than there are slots, and a thread cannot be told to end.
        """
        with self._lock:
            if id(call) not in self._running_on:
                return
            self._running_on.discard(id(call))
            needed = threading.Event()
            self._parked.append((threading.current_thread(), needed))
        needed.wait()

    def _settle(self, call: Call, request: Delivery | None, count: int) -> None:
        with self._lock:
            self._replace(call.thread_id)
        logger.error(
            "budgets.thread_abandoned task_id=%s lane=%s abandoned=%s most=%s",
            call.task_id, call.lane, count, self._most,
        )  # fmt: skip
        if request is not None:
            request.on_timeout(soft=False, timeout=call.limits.hard)
        if count > self._most:
            self._leave(count)

    def _replace(self, thread_id: int) -> None:
        """Give the pool a thread in place of one that nothing waits for any more.

        Reaches into concurrent.futures.ThreadPoolExecutor: it has no way to let a thread go,
        and both its shutdown and the interpreter's would wait for it for ever.
        """
        executor = self._worker.pool.executor
        for thread in list(executor._threads):
            if thread.ident == thread_id:
                executor._threads.discard(thread)
                futures._threads_queues.pop(thread, None)  # type: ignore[attr-defined]
        if self._parked:
            thread, needed = self._parked.pop()
            executor._threads.add(thread)
            needed.set()
        else:
            executor._adjust_thread_count()

    def _leave(self, count: int) -> None:
        if state.should_stop is not None and state.should_stop is not False:
            return
        if self._embedded:
            return
        logger.critical(
            "budgets.worker_leaves abandoned=%s most=%s exit_code=%s: it takes no more calls",
            count, self._most, EXIT_CODE,
        )  # fmt: skip
        state.should_stop = EXIT_CODE

    def _part(self, **_: Any) -> None:
        """At the end of a shutdown, leave without joining threads that run on."""
        if self._embedded or not (self._running_on or self._parked):
            return
        spans.flush(1.0)
        # What an exit would do, but for the threads.
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE if state.should_stop == EXIT_CODE else 0)
