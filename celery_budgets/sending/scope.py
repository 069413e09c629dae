"""Request scopes: group all calls that one request leads to under one name.

Every message that is sent inside a scope carries its path in a header: those that the process
which opened it sends, in coroutines too, and those that its calls send on workers. A nested scope
has the path of both, joined by ``/``, and belongs to the outer one as well: for statistics,
cancellation and limits.

Runs in the sending process. See also: :mod:`celery_budgets.worker.calls.scopes`, for what a
worker remembers about scopes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import uuid4

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import RejectedByBudget
from celery_budgets.execution.context import takes_its_place, worker_request
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.headers import HEADER_DEADLINE, HEADER_SCOPE
from celery_budgets.model.reasons import (
    REASON_MAX_CALLS,
    REASON_SCOPE_CANCELLED,
    REASON_SCOPE_TIMEOUT,
)

if TYPE_CHECKING:
    from celery_budgets.sending.remote_control import Inspection
    from celery_budgets.telemetry.statistics import Statistics

__all__ = ["Scope", "admit", "join_scope", "path_here", "paths_above", "scope_in", "take_back"]

LONGEST_NAME = 200


class Scope:
    """The calls that are sent inside a ``with`` block, and all calls that these send in turn.

    Created by :meth:`celery_budgets.Budgets.scope`.

    Args:
        app: The Celery app.
        inspection: Asks its workers.
        name: Name of the scope; a random name by default. Two scopes of one name share their
            statistics, and are cancelled together.
        max_calls: Calls that this process may send inside; ``None``: any number.
        timeout: Seconds from now, or text, that all calls together may take; ``None``: no limit.

    Raises:
        ValueError: The name, the number or the duration is invalid.
    """

    def __init__(
        self,
        app: Any,
        inspection: Inspection,
        name: str | None = None,
        *,
        max_calls: int | None = None,
        timeout: float | str | None = None,
    ) -> None:
        self.name = uuid4().hex if name is None else _checked_name(name)
        if max_calls is not None and (isinstance(max_calls, bool) or max_calls < 0):
            raise ValueError(f"scope {self.name!r}: max_calls {max_calls!r} must be 0 or more")
        self.max_calls = max_calls
        #: Whether :meth:`cancel` was called, so that this process sends nothing inside any more.
        self.cancelled = False
        #: The Celery app.
        self.app = app
        self._inspection = inspection
        self._outer = _current()
        above = self._outer.path if self._outer is not None else _path_of_running_call()
        #: The names of the outer scopes and its own, joined by "/", as in the header.
        self.path: str = f"{above}/{self.name}" if above else self.name
        self._deadline = self._deadline_after(timeout)
        self._sent = 0
        self._lock = threading.Lock()

    def _deadline_after(self, timeout: float | str | None) -> Deadline | None:
        outer = self._outer._deadline if self._outer is not None else None
        if timeout is None:
            return outer
        factor = settings_of(self.app).budget.escalation_factor
        return Deadline.after(timeout, factor).earlier(outer)

    def __enter__(self) -> Self:
        _inside.set(_Inside(self, _inside.get()))
        return self

    def __exit__(self, *exc_info: object) -> None:
        inside = _inside.get()
        _inside.set(inside.around if inside is not None else None)

    @property
    def sent(self) -> int:
        """Calls that this process has sent inside, including those in nested scopes."""
        return self._sent

    def remaining(self) -> float | None:
        """Return the seconds left of its timeout, at least 0; ``None`` without a timeout."""
        return None if self._deadline is None else max(0.0, self._deadline.left().soft)

    def statistics(self, timeout: float = 1.0) -> Statistics:
        """Return the statistics of its calls on all workers, each call counted once.

        Args:
            timeout: How long workers may take to answer, seconds.

        Returns:
            Statistics whose ``silent`` names workers that did not answer. They lack workers that
            have ended, and those that have seen calls of 256 other scopes since.
        """
        from celery_budgets.telemetry.statistics import Statistics  # most programs only send

        answers = self._inspection.ask(timeout, arguments={"scope": self.path})
        merged = Statistics(answers.silent)
        for answer in answers.by_worker.values():
            merged.merge(Statistics.from_json(answer.get("scope", ())))
        return merged

    def cancel(self, *, running: bool = False) -> None:
        """Revoke the waiting calls of this scope, and those that are sent later.

        A worker revokes a call when it would start it: immediately if a slot is free. The workers
        that run now remember the scope for 3 hours, and pass it on to workers that start later
        (Celery's ``mingle``). If no worker runs, the cancellation is lost.

        Args:
            running: Terminate running calls as well (prefork only, as ``revoke(terminate=True)``).

        Raises:
            kombu.exceptions.OperationalError: The broker does not answer.
        """
        self.cancelled = True
        # On its own connection: an interrupt may have left a pooled one in mid-command.
        with self.app.connection_for_write() as connection:
            self.app.control.broadcast(
                "cancel_scope",
                arguments={"scope": self.path, "running": running},
                connection=connection,
            )

    def _admit(self) -> None:
        if self.cancelled:
            raise RejectedByBudget(REASON_SCOPE_CANCELLED)
        if self._deadline is not None and self._deadline.passed:
            raise RejectedByBudget(REASON_SCOPE_TIMEOUT)
        if self.max_calls is not None and self._sent >= self.max_calls:
            raise RejectedByBudget(REASON_MAX_CALLS)

    def _all(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope._outer

    def __repr__(self) -> str:
        return f"<Scope {self.path} sent={self._sent}{' cancelled' if self.cancelled else ''}>"


class _Inside(NamedTuple):
    """One entry into a scope; several contexts may enter the same scope."""

    scope: Scope
    around: _Inside | None


_inside: ContextVar[_Inside | None] = ContextVar("celery_budgets_scope", default=None)


def _current() -> Scope | None:
    inside = _inside.get()
    return inside.scope if inside is not None else None


def admit() -> None:
    """Count a call that is about to be sent in the current scope and in all outer ones.

    Raises:
        RejectedByBudget: One of them has used up its calls or its time, or is cancelled.
    """
    innermost = _current()
    if innermost is None:
        return
    scopes = list(innermost._all())
    # Threads may share a scope; all that count in it have its outermost scope in common.
    with scopes[-1]._lock:
        for scope in scopes:
            scope._admit()
        for scope in scopes:
            scope._sent += 1


def take_back() -> None:
    """Undo :func:`admit` for a call that was not published."""
    innermost = _current()
    if innermost is None:
        return
    scopes = list(innermost._all())
    with scopes[-1]._lock:
        for scope in scopes:
            scope._sent -= 1


def join_scope(headers: dict[str, Any]) -> None:
    """Add the scope to the headers of a message, and shorten its deadline to the scope's.

    Args:
        headers: Headers of a message that is about to be published; changed. A scope that they
            name is kept. A retry or replacement of the running call gets the scope of that call,
            not one opened in its body.
    """
    scope, path = _current(), path_here()
    if takes_its_place(headers.get("id")):
        scope, path = None, _path_of_running_call()
    if path is not None:
        headers.setdefault(HEADER_SCOPE, path)
    if scope is not None and scope._deadline is not None:
        own = Deadline.of(headers.get(HEADER_DEADLINE))
        headers[HEADER_DEADLINE] = list(scope._deadline.earlier(own))


def path_here() -> str | None:
    """Return the path of the current scope: an open one's, else that of the running call."""
    scope = _current()
    return scope.path if scope is not None else _path_of_running_call()


def scope_in(headers: Mapping[str, Any]) -> str | None:
    """Return the path of the scope in a message's headers; ``None`` if it is invalid."""
    path = headers.get(HEADER_SCOPE)
    return path if isinstance(path, str) and path else None


def paths_above(path: str) -> Iterator[str]:
    """Yield the path of a scope and of all outer scopes, innermost first.

    Example:
        >>> list(paths_above("req-42/index"))
        ['req-42/index', 'req-42']
    """
    while path:
        yield path
        path = path.rpartition("/")[0]


def _path_of_running_call() -> str | None:
    request = worker_request()
    return scope_in(vars(request)) if request is not None else None


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or "/" in name:
        raise ValueError(
            f"scope: {name!r} must be text of 1 to {LONGEST_NAME} characters without '/'"
        )
    return name
