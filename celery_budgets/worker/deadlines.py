"""The worker's own timers on prefork, brought in line with what the pool process knows.

Celery arms one timer per call when the pool accepts it. Three things are added here: a call
that was extended is left alone until its new deadline, a call whose body has ended is not
killed while its result is on the way, and the slot of a dead process comes back at once.

See also: :mod:`celery_budgets.process.watchdog`, the second line.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from celery_budgets.process.recorder import Flight, FlightReader
from celery_budgets.worker.request import BudgetedRequest
from celery_budgets.worker.timers import CallTimers

__all__ = ["Deadlines"]

#: Seconds after the end of a process at which the pool is looked at again: waitpid may not
#: see it dead at first, and Celery's own next look comes after 5 s (celery#9588).
NUDGES = (0.02, 0.06, 0.12, 0.2, 0.4, 1.0)
#: Longest that a result may take to arrive after its body has ended, seconds.
RESULT_SECONDS = 60.0
#: How often a call that was accepted is looked at until it begins, seconds.
BEGIN_POLL = 0.1
#: How often a result on its way is looked for, seconds.
RESULT_POLL = 0.25


class Deadlines:
    """Stands in front of the timer methods of one asynchronous pool.

    Args:
        asynpool: A ``celery.concurrency.asynpool.AsynPool`` that has not met its hub yet.
        hub: The worker's event loop.
        flights: Reads the records of the pool processes.
    """

    def __init__(self, asynpool: Any, hub: Any, flights: FlightReader) -> None:
        self._pool = asynpool
        self._hub = hub
        self._flights = flights
        self._celery_soft = asynpool._on_soft_timeout
        self._celery_hard = asynpool._on_hard_timeout
        self._celery_exit = asynpool._event_process_exit

    def attach(self) -> None:
        """Replace AsynPool._on_soft_timeout, _on_hard_timeout and _event_process_exit.

        AsynPool looks all three up on itself each time that it arms a timer or tracks a
        process, so attributes of the instance stand in front of the methods. It keeps a table
        of timers that is there already (_create_timelimit_handlers).
        """
        if getattr(self._pool, "_tref_for_id", None) is None:
            self._pool._tref_for_id = CallTimers(self._hub)
        self._pool._on_soft_timeout = self.on_soft
        self._pool._on_hard_timeout = self.on_hard
        self._pool._event_process_exit = self.on_process_exit

    def on_soft(self, job: int, soft: float, hard: float | None, hub: Any) -> None:
        """Let Celery send the soft signal when the call is due by its own clock."""
        result, flight = self._pool._cache.get(job), self._flight(job)
        if flight is not None:
            left = flight.soft_deadline - monotonic()
        elif _is_budgeted(result):
            # Accepted, but not begun: its process still imports, and the signal would hit that.
            if hard and monotonic() - result._time_accepted >= hard:
                self.on_hard(job)
                return
            left = BEGIN_POLL
        else:
            left = 0.0
        if left > 0:
            self._pool._tref_for_id[job] = hub.call_later(left, self.on_soft, job, soft, hard, hub)
        else:
            self._celery_soft(job, soft, hard, hub)

    def on_hard(self, job: int) -> None:
        """Let Celery kill the process when the call is due by its own clock and still runs."""
        left = self._left_to_hard(self._flight(job))
        if left > 0:
            self._pool._tref_for_id[job] = self._hub.call_later(left, self.on_hard, job)
            return
        self._celery_hard(job)
        self._nudge()

    def on_process_exit(self, hub: Any, process: Any) -> None:
        """Let Celery replace the process, and look again until it has."""
        self._celery_exit(hub, process)
        self._nudge()

    def _left_to_hard(self, flight: Flight | None) -> float:
        if flight is None:
            return 0.0
        now = monotonic()
        if flight.ended:
            # The result is stored or on its way: killing now would lose it.
            return RESULT_POLL if now < flight.hard_deadline + RESULT_SECONDS else 0.0
        return flight.hard_deadline - now

    def _flight(self, job: int) -> Flight | None:
        """Return the record of a call that is still in the pool's hands."""
        result = self._pool._cache.get(job)
        if result is None or not result._worker_pid:
            return None
        return self._flights.read(result._worker_pid, result.correlation_id or "")

    def _nudge(self) -> None:
        for seconds in NUDGES:
            self._hub.call_later(seconds, self._maintain)

    def _maintain(self) -> None:
        pool = self._pool
        if len(pool._pool) < pool._processes or not all(p._is_alive() for p in pool._pool):
            pool.maintain_pool()
        self._forget_the_gone()

    def _forget_the_gone(self) -> None:
        """Drop records that nothing asks for any more: their process and their call are gone."""
        wanted = {process.pid for process in self._pool._pool}
        wanted |= {job._worker_pid for job in self._pool._cache.values()}
        for pid in self._flights.pids():
            if pid not in wanted:
                self._flights.forget(pid)


def _is_budgeted(result: Any) -> bool:
    """Say whether a job of the pool is a call whose process keeps a record of it."""
    return isinstance(
        getattr(result and result._timeout_callback, "__self__", None), BudgetedRequest
    )
