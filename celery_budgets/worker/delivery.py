"""The interface of a delivery for the packages of a worker; ``BudgetedRequest`` implements it.

Types only: these packages must not import :mod:`celery_budgets.worker.request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from celery_budgets.errors import RejectedByBudget
    from celery_budgets.execution.flight.reader import FlightReader
    from celery_budgets.execution.flight.record import Flight
    from celery_budgets.model.budget import TimeLimits
    from celery_budgets.model.lanes import Lane
    from celery_budgets.model.outcomes import Outcome
    from celery_budgets.model.stack import Stack

__all__ = ["Calls", "Delivery", "Runtime"]


class Calls(Protocol):
    """The calls that a worker has received: its roster."""

    in_hand: dict[tuple[str, float | None], Any]

    def ended(
        self,
        request: Any,
        outcome: Outcome,
        flight: Flight | None = None,
        reason: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Give *request* its outcome."""

    def comes_back(self, request: Any) -> None:
        """Release what a terminated *request* still held."""

    def rejected(self, request: Any, reason: str) -> None:
        """Count a delivery that is not admitted."""

    def already_ended(self, request: Any) -> Outcome | None:
        """Return how the call of a redelivered message ended."""

    def count_failure(self) -> None:
        """Count a span or a record that could not be created."""


class Runtime(Protocol):
    """The runtime of the worker."""

    #: ``None`` if calls run in the worker itself.
    flights: FlightReader | None
    #: Takes the stacks of calls (celery_budgets.worker.stacks.black_box).
    black_box: Any


class Delivery(Protocol):
    """One message of a budgeted task, from its arrival to its end.

    Undocumented attributes are those of celery.worker.request.Request.
    """

    id: str
    name: str
    type: str
    task: Any
    app: Any
    args: Any
    kwargs: Any
    hostname: str
    request_dict: dict[str, Any]
    delivery_info: Mapping[str, Any]
    worker_pid: int | None
    time_start: float | None
    acknowledged: bool
    time_limits: tuple[float | None, float | None]
    _app: Any
    _type: str
    _hostname: str
    _request_dict: dict[str, Any]
    _context: Any
    _argsrepr: str
    _kwargsrepr: str
    _apply_result: Any
    _already_cancelled: bool
    message: Any

    roster: Calls
    lane: Lane
    limits: TimeLimits
    ceiling: float | None
    outcome: Outcome | None
    message_key: tuple[str, float | None]
    #: What it needs of limits over the fleet, if that depends on the call itself.
    demands: Any
    #: For how long only those kept it from its start, seconds.
    limit_wait: float
    #: A later delivery of the same message.
    again: Any
    #: The handle that a pool in this process returned for it.
    job: Any
    #: Whether its message was redelivered elsewhere, so that this delivery must not settle it.
    overtaken: bool
    #: Whether Celery has requeued its message, or published a retry.
    sent_again: bool
    counted: bool
    runs_on: bool
    given_up: bool
    #: Where its body was when it was killed, and before at its soft limit.
    stacks: tuple[Stack, ...]

    @property
    def hard_rss(self) -> int:
        """Bytes of RSS at which the call is killed."""

    def acknowledge(self) -> None:
        """Acknowledge the message."""

    def reject(self, requeue: bool = False) -> None:
        """Reject the message."""

    def hand_back(self) -> None:
        """Requeue the message at the broker."""

    def step_aside(self) -> None:
        """Acknowledge the message of a call that waits aside."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """End a call at its limit."""

    def comes_back(self) -> None:
        """Record that the pool has reported the end of the call."""

    def end_killed(self, exc: Exception, outcome: Outcome, flight: Flight | None = None) -> None:
        """End a call whose end no process will report."""

    def end_rejected(self, exc: RejectedByBudget) -> None:
        """Fail a call that is not admitted."""

    def _announce_revoked(self, reason: str, *args: Any) -> None:
        """Report that it is revoked, as Celery does."""
