"""Enforces the time limits of running calls on prefork, with one timer in the worker main process.

Celery starts a timer for each call that the pool has accepted and cancels it at the end of the
call; its event loop keeps a cancelled timer until it would have been due. Here one timer checks
all running calls, when the first of them is due. It spares a call that was extended, until its new
deadline; it does not kill one whose body has ended while the result is being sent; and a dead
process is replaced at once.

See also: :mod:`celery_budgets.execution.limits.watchdog`, the second line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from celery_budgets.execution.flight.reader import FlightReader
from celery_budgets.execution.flight.record import Flight

__all__ = ["TimeLimitTimer"]

#: Seconds after the end of a process at which the pool is checked again: waitpid may not report
#: it at first, and Celery's own next check comes after 5 s (celery#9588).
NUDGES = (0.02, 0.06, 0.12, 0.2, 0.4, 1.0)
#: Longest time for a result to arrive after its body has ended, seconds.
RESULT_SECONDS = 60.0
#: Interval of checks whether an accepted call has begun, seconds.
BEGIN_POLL = 0.1
#: Interval of checks whether a result has arrived, seconds.
RESULT_POLL = 0.25
#: Longest interval between two checks of running calls, seconds: an earlier one cancels its timer,
#: and a cancelled one stays in the event loop until it would have been due.
LONGEST = 1.0
#: A check later than this, in seconds, means that the event loop was blocked: first it gets as
#: much time to read from the processes, which may have sent the results of calls that are due.
LATE = 0.1
#: Time for the event loop between many kills, seconds.
TURN = 0.01


class TimeLimitTimer:
    """Replaces the timers of one asynchronous pool.

    Args:
        asynpool: A ``celery.concurrency.asynpool.AsynPool`` before it is registered with its hub.
        hub: The worker's event loop.
        flights: Reads the records of the pool processes.
        take_stack: Makes a process write where its call is, before it is interrupted.
    """

    def __init__(
        self,
        asynpool: Any,
        hub: Any,
        flights: FlightReader,
        take_stack: Callable[[int | None, str], None] = lambda pid, moment: None,
    ) -> None:
        self._pool = asynpool
        self._hub = hub
        self._flights = flights
        self._take_stack = take_stack
        self._celery_exit = asynpool._event_process_exit
        #: Instant of the next check (monotonic), and its timer.
        self._next_look = inf
        self._timer: Any = None
        self._was_late = False
        self._looking = threading.Lock()
        #: Jobs that were sent their soft signal.
        self._told: set[int] = set()

    def attach(self) -> None:
        """Replace AsynPool._create_timelimit_handlers and _event_process_exit.

        AsynPool looks up the first on itself each time that it meets an event loop, at the
        start and after each reconnect, and the second each time that it tracks a process: so
        attributes of the instance stand in front of the methods. At a warm stop there is no
        event loop; ResultHandler.on_stop_not_started then calls check_timeouts, which is
        billiard's TimeoutHandler and knows of no extended call.
        """
        self._pool._create_timelimit_handlers = self.register
        self._pool._event_process_exit = self.on_process_exit
        self._pool._result_handler.check_timeouts = self.look

    def register(self, hub: Any) -> None:
        """Connect to the pool's callbacks for accepted calls; check calls that run already.

        Mirrors AsynPool._create_timelimit_handlers (5.7). billiard.pool.ApplyResult calls
        on_timeout_set when a process has accepted a call; it asks before on_timeout_cancel,
        and there is nothing to cancel. After a reconnect the timer may be gone: Celery 5.5 drops
        all of them (celery.worker.consumer.Consumer.on_close), and 5.7 those that were armed in
        here (celery.worker.loops.asynloop).
        """
        self._pool.on_timeout_set = self.on_accepted
        self._pool.on_timeout_cancel = None
        self._disarm()
        self._look_at(monotonic() + LATE)

    def on_accepted(self, result: Any, soft: float | None, hard: float | None) -> None:
        """Schedule a check no later than the call's first limit."""
        first = soft or hard
        if first:
            due = result._time_accepted + first
            if due < self._next_look:
                self._look_at(due)

    def _look_at(self, when: float) -> None:
        """Schedule a check at *when* (monotonic) or earlier."""
        if when >= self._next_look:
            return
        self._disarm()
        now = monotonic()
        self._next_look = min(when, now + LONGEST)
        self._timer = self._hub.call_later(self._next_look - now, self.look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next_look = None, inf

    def look(self) -> None:
        """Enforce the limits that are due, and schedule the next check.

        At a stop timers fire in a thread (celery.concurrency.prefork.TaskPool.on_stop), and the
        pool calls this too: only one of them proceeds.
        """
        if self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()

    def _look(self) -> None:
        now = monotonic()
        late = now > self._next_look + LATE
        self._disarm()
        if late and not self._was_late:
            self._was_late = True
            self._look_at(now + LATE)
            return
        self._was_late = False
        jobs = self._pool._cache.copy()
        self._told &= jobs.keys()
        running = [job for job in jobs.values() if job._worker_pid]
        if running:
            # Even if settling one of them fails because the connection is lost.
            self._look_at(now + LONGEST)
        for result in running:
            act = self._settle if monotonic() <= now + LATE else self._due_at
            self._look_at(act(result, now))
        self._give_turn(now)

    def _give_turn(self, began: float) -> None:
        """Let the event loop run before the next check, if this one has killed.

        A kill takes a tenth of a second, so the next check is late for a known reason, which must
        not postpone it further.
        """
        now = monotonic()
        if now > began + LATE and self._next_look < now + TURN:
            self._disarm()
            self._look_at(now + TURN)

    def _settle(self, result: Any, now: float) -> float:
        """Enforce the limits of one call that are due; return the next instant (monotonic)."""
        soft_at = self._soft_at(result, now)
        if soft_at <= now:
            self._told.add(result._job)
            self._take_stack(result._worker_pid, "soft_time_limit")
            self._pool.on_soft_timeout(result)
            soft_at = inf
        hard_at = self._hard_at(result, now)
        if hard_at <= now:
            # Before the call is settled, which shows it.
            self._take_stack(result._worker_pid, "hard_time_limit")
            self._pool.on_hard_timeout(result)
            self._nudge()
            return inf
        return min(soft_at, hard_at)

    def end_soon(self, result: Any, seconds: float) -> None:
        """Interrupt a call as at its soft limit now, and kill it *seconds* later if it runs on."""
        if result._worker_pid and result._job in self._pool._cache:
            self._told.add(result._job)
            self._pool.on_soft_timeout(result)
            self._hub.call_later(seconds, self._end, result)

    def _end(self, result: Any) -> None:
        flight = self._flight(result)
        if flight is not None and not flight.ended:
            self._take_stack(result._worker_pid, "hard_time_limit")
            self._pool.on_hard_timeout(result)
            self._nudge()

    def _due_at(self, result: Any, now: float) -> float:
        return min(self._soft_at(result, now), self._hard_at(result, now))

    def _soft_at(self, result: Any, now: float) -> float:
        if not result._soft_timeout or result._job in self._told:
            return inf
        at: float = result._time_accepted + result._soft_timeout
        if now < at:
            return at
        flight = self._flight(result)
        if flight is not None:
            return inf if flight.ended else flight.soft_deadline
        # Accepted, but not begun: the signal would interrupt imports of its process.
        return now + BEGIN_POLL if _is_budgeted(result) else at

    def _hard_at(self, result: Any, now: float) -> float:
        if not result._timeout:
            return inf
        at: float = result._time_accepted + result._timeout
        flight = self._flight(result) if now >= at else None
        if flight is None:
            return at
        if flight.ended and now < flight.hard_deadline + RESULT_SECONDS:
            # The result is being stored or sent: killing now would lose it.
            return now + RESULT_POLL
        return flight.hard_deadline

    def _flight(self, result: Any) -> Flight | None:
        return self._flights.read(result._worker_pid, result.correlation_id or "")

    def on_process_exit(self, hub: Any, process: Any) -> None:
        """Let Celery replace the process, and check again until it has.

        Mirrors AsynPool._event_process_exit (5.7) where calls are due.
        """
        if self._calls_are_due():
            self._pool._untrack_child_process(process, hub)
        else:
            self._celery_exit(hub, process)
        self._nudge()

    def _calls_are_due(self) -> bool:
        """Return whether a check is due, which starting a process first would delay.

        False if it is long overdue: its timer may be lost until the next reconnect.
        """
        return -LONGEST < self._next_look - monotonic() <= TURN

    def _nudge(self) -> None:
        for seconds in NUDGES:
            self._hub.call_later(seconds, self._maintain)

    def _maintain(self) -> None:
        if self._calls_are_due():
            return  # it is called again
        pool = self._pool
        if len(pool._pool) < pool._processes or not all(p._is_alive() for p in pool._pool):
            pool.maintain_pool()
        self._forget_the_gone()

    def _forget_the_gone(self) -> None:
        """Remove records whose process and call have both ended."""
        wanted = {process.pid for process in self._pool._pool}
        wanted |= {job._worker_pid for job in self._pool._cache.values()}
        for pid in self._flights.pids():
            if pid not in wanted:
                self._flights.forget(pid)


def _is_budgeted(result: Any) -> bool:
    """Return whether a job of the pool is a budgeted call, which has a flight record."""
    return hasattr(getattr(result._timeout_callback, "__self__", None), "end_killed")
