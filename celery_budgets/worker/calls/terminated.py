"""Handles terminated calls: ``revoke(terminate=True)``, by id or by stamped headers.

The call counts as revoked at once. Its slot is released only when its process is free: a signal
may be caught, ignored or blocked, and SIGUSR1 lets the body clean up.

Lives in the worker main process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.request import Request

if TYPE_CHECKING:
    from celery_budgets.model.outcomes import Outcome
    from celery_budgets.model.stack import Stack
    from celery_budgets.worker.delivery import Calls, Runtime

__all__ = ["TerminableRequest"]


class TerminableRequest(Request):
    """A delivery that, once terminated, holds its slot until the pool reports its end."""

    roster: Calls
    runtime: Runtime
    outcome: Outcome | None
    #: Whether its body may still run although the call has its outcome.
    runs_on = False
    #: Where its body was when it was killed, and before at its soft limit.
    stacks: tuple[Stack, ...] = ()
    _terminated_in: Any = None

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Signal the process of the call, after recording which call the signal is for.

        Differs from Request.terminate by the record; pools without processes raise there.

        Raises:
            NotImplementedError: A thread cannot be terminated, nor can the worker itself.
        """
        if self.time_start and self.outcome is None:
            self.runs_on, self._terminated_in = True, pool
            if self.runtime.flights is not None:
                self.runtime.black_box.take(self.worker_pid, "revoked")
                self.stacks = self.runtime.black_box.of(self)
                self.runtime.flights.terminate(self.worker_pid, self.id)
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            self.runs_on = False
            raise

    def comes_back(self) -> None:
        """Record that the pool has reported the end of the call; must be called first."""
        if self.runs_on:
            self.roster.comes_back(self)
            self._forgive()

    def _forgive(self) -> None:
        """Make billiard forget that it has signalled a process which lives on.

        It would take the loss of a later call there for the termination of this one
        (billiard.pool.Pool.terminate_job and _join_exited_workers).
        """
        find = getattr(getattr(self._terminated_in, "_pool", None), "_process_by_pid", None)
        process = find(self.worker_pid)[0] if find is not None else None
        if process is not None:
            process._controlled_termination = process._job_terminated = False
        if self.runtime.flights is not None and self.worker_pid is not None:
            self.runtime.flights.announce(self.worker_pid, ends=False)
