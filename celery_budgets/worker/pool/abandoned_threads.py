"""Abandons threads that run on past their hard limit, and stops the worker if there are too many.

A thread cannot be killed. Its call ends nevertheless: the result is stored and the pool gets
another thread. If there are too many such threads, the worker stops consuming, finishes its
running calls and exits with :data:`EXIT_CODE`, so that its supervisor restarts it.
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

#: Exit code of a worker that exits because of abandoned threads (``EX_TEMPFAIL``).
EXIT_CODE = 75


class AbandonedThreads:
    """Abandons calls of one worker whose threads run on past the hard limit.

    Args:
        worker: The Celery worker; its pool may not exist yet.
        roster: The calls of the worker.
        most: Abandoned threads above which the worker stops.
        embedded: Whether the worker runs in a thread of a program, which it must not end.
    """

    def __init__(self, worker: Any, roster: Roster, most: int, *, embedded: bool) -> None:
        self._worker = worker
        self._roster = roster
        self._most = most
        self._embedded = embedded
        self._lock = threading.Lock()
        self._running_on: set[int] = set()
        #: Threads that have ended their body, each waiting to be reused.
        self._parked: list[tuple[threading.Thread, threading.Event]] = []
        signals.worker_shutdown.connect(self._part, sender=worker)

    @property
    def count(self) -> int:
        """Abandoned threads that still run."""
        return len(self._running_on)

    def abandon(self, call: Call) -> None:
        """End *call* while its thread runs on; called by the watchdog, which must not block."""
        request = self._roster.in_hand.get((call.task_id, call.due_at))
        if request is not None:
            # Before its thread can return and report another end.
            request.given_up = True
        with self._lock:
            self._running_on.add(id(call))
            count = len(self._running_on)
        threading.Thread(
            target=self._settle, args=(call, request, count),
            name="celery-budgets-abandon", daemon=True,
        ).start()  # fmt: skip

    def returned(self, call: Call) -> None:
        """Stop counting the thread of *call*, and park it until the pool needs one again.

        Called in that thread, which was replaced. In the pool it would be one thread more than
        there are slots, and a single pool thread cannot be ended.
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
        """Give the pool a thread in place of an abandoned one.

        Accesses internals of concurrent.futures.ThreadPoolExecutor: it cannot release a thread,
        and both its shutdown and the interpreter's would join that thread for ever.
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
        """At the end of a shutdown, exit without joining abandoned threads."""
        if self._embedded or not (self._running_on or self._parked):
            return
        spans.flush(1.0)
        # As a normal exit does, except for joining threads.
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE if state.should_stop == EXIT_CODE else 0)
