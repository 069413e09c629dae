"""The options of ``apply_async`` that this package adds, and the headers that calls inherit.

:func:`options_for` converts the added options into Celery's own. Every message that is published
while a call runs inherits the deadline of that call.

Runs in the sending process. See also: :mod:`celery_budgets.worker.calls.inherited_deadline`,
which enforces the deadline in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from time import time
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.execution.context import call_of, running_call, takes_its_place, worker_request
from celery_budgets.model.budget import Budget, checked_limit, seconds_or_none
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.demands import key_problems, weight_problems
from celery_budgets.model.headers import (
    HEADER_ASIDE,
    HEADER_DEADLINE,
    HEADER_DUE_AT,
    HEADER_IDEMPOTENCY_KEY,
    HEADER_LIMIT_KEYS,
    HEADER_WEIGHT,
)
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.priority import Broker, Priority, low_queue, number_of
from celery_budgets.sending import sent
from celery_budgets.sending.scope import admit, join_scope, take_back

__all__ = ["inherit", "not_sent", "options_for", "stamp"]


def options_for(task: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return *options* of ``apply_async`` with those of this package converted into Celery's.

    Args:
        task: The task that is sent.
        options: Keyword arguments of its ``apply_async``; not changed.

    Raises:
        ValueError: One of them is invalid.

    Example:
        >>> options_for(task, {"deadline": 5.0, "countdown": 1})
        {'countdown': 1, 'headers': {'budgets_deadline': [1764000005.0, 1764000007.5]}}
    """
    options = dict(options)
    for turn in _TURNS:
        turn(task, options)
    return options


def _deadline(task: Any, options: dict[str, Any]) -> None:
    """``deadline=``: seconds for the call and all calls that it sends; ``None``: inherit none."""
    if "deadline" in options:
        factor = settings_of(task.app).budget.escalation_factor
        _add_header(options, HEADER_DEADLINE, _header(options.pop("deadline"), factor))


def _priority(task: Any, options: dict[str, Any]) -> None:
    """``priority=``: ``"high"``, ``"normal"`` or ``"low"``; a number is passed on unchanged.

    Raises:
        ConfigurationError: The word is unknown, or the app has no priorities.
    """
    word = options.get("priority")
    if word is None:
        word = task.priority
    if not isinstance(word, str):
        return
    priority = Priority.named(word, f"task {task.name!r}")
    settings, broker = settings_of(task.app), Broker.of(task.app)
    if not settings.priorities or broker is None:
        remedy = (
            "the broker has none; use Redis or RabbitMQ"
            if settings.priorities
            else "set budgets_priorities = True in senders and workers"
        )
        raise ConfigurationError(f"task {task.name!r}: priority {word!r}: {remedy}")
    options["priority"] = number_of(priority, broker)
    queue = options.get("queue")
    lane = settings.lanes.of_queue(getattr(queue, "name", queue))
    if lane is not None and priority is Priority.LOW and broker is Broker.RABBITMQ:
        # Celery prefers a queue that the call names to what the router returns.
        options["queue"] = low_queue(lane.queue)


def _idempotency_key(task: Any, options: dict[str, Any]) -> None:
    """``idempotency_key=``: text; only one of the calls with the same key runs.

    They share one task id, and so one result. A call that has a task id already, as in a canvas,
    keeps it, and its result is a copy. Eager calls run each time.

    Raises:
        ConfigurationError: The app has no Redis for the keys.
    """
    key = options.pop("idempotency_key", None)
    if key is None or task.app.conf.task_always_eager:
        return
    # Imported here, since it imports the Redis client and most calls have no key.
    from celery_budgets.idempotency.run_once import checked_key, forget_failure, task_id_of
    from celery_budgets.shared_state.lease_store import leases_of

    leases_of(task.app)
    _add_header(options, HEADER_IDEMPOTENCY_KEY, checked_key(key))
    if options.get("task_id") is None:
        options["task_id"] = task_id_of(task.name, key)
        if not options.get("ignore_result", task.ignore_result):
            forget_failure(task.backend, options["task_id"])


def _limits(task: Any, options: dict[str, Any]) -> None:
    """``limit_keys=``: the key by limit; ``weight=``: for how many calls it counts.

    Raises:
        ConfigurationError: One of them is of no limit that the task names, or can never start.
    """
    keys, weight = options.pop("limit_keys", None), options.pop("weight", None)
    if keys is None and weight is None:
        return
    # A map is held to the limits of the task that it names.
    task_of_limits = getattr(task, "mapped", None) or task
    subject, known = f"task {task_of_limits.name!r}", settings_of(task.app).limits
    problems: list[str] = []
    if keys is not None:
        problems += key_problems(subject, keys, task_of_limits.limits, known)
    if weight is not None:
        problems += weight_problems(subject, weight, task_of_limits.limits, known)
    ConfigurationError.raise_if(problems)
    if keys is not None:
        _add_header(options, HEADER_LIMIT_KEYS, _keys(keys))
    if weight is not None:
        _add_header(options, HEADER_WEIGHT, weight)


def _keys(keys: Any) -> dict[str, str]:
    return {str(name): str(key) for name, key in keys.items()}


def _scope(task: Any, options: dict[str, Any]) -> None:
    """Count the call in the request scope around it, which may reject it."""
    if not takes_its_place(options.get("task_id")):
        admit()


def not_sent(task: Any, task_id: str | None) -> None:
    """Undo the count of a call that could not be published.

    An eager call stays counted, since it has run even if it raised.
    """
    if not task.app.conf.task_always_eager and not takes_its_place(task_id):
        take_back()


def _time_limits(task: Any, options: dict[str, Any]) -> None:
    """``soft_time_limit=`` and ``time_limit=``: Celery's own, which may also be text.

    Raises:
        ValueError: One is no duration above 0, and a worker could only ignore it.
    """
    for name in ("soft_time_limit", "time_limit"):
        value = options.get(name)
        if value is not None:
            # A retry or replacement keeps the limits in the message of the call it continues.
            again = takes_its_place(options.get("task_id"))
            options[name] = seconds_or_none(value) if again else checked_limit(name, value)


#: One function per option; each removes its option and may add Celery's. The last one counts the
#: call, after all functions that may reject it.
_TURNS: tuple[Callable[[Any, dict[str, Any]], None], ...] = (
    _deadline, _time_limits, _priority, _limits, _idempotency_key, _scope,
)  # fmt: skip


def _add_header(options: dict[str, Any], name: str, value: Any) -> None:
    """Add a header to a copy of the caller's headers, which other messages may share."""
    options["headers"] = {**(options.get("headers") or {}), name: value}


def _header(seconds: Any, factor: float) -> list[float] | None:
    return None if seconds is None else list(Deadline.after(seconds, factor))


def stamp(headers: Any = None, properties: Any = None, routing_key: str = "", **_: Any) -> None:
    """Add the headers for scope, due time and deadline to a message, and remember it.

    A receiver of Celery's signal ``before_task_publish``, which is sent for every message.
    """
    if headers is None:
        return
    headers.pop(HEADER_ASIDE, None)  # of the message that a retry goes on for
    inherit(headers, properties)
    join_scope(headers)
    now, eta = time(), headers.get("eta")
    due_at = max(now, datetime.fromisoformat(eta).timestamp()) if eta else now
    headers[HEADER_DUE_AT] = due_at
    sent.note(headers.get("id"), routing_key, now, due_at)


def inherit(headers: dict[str, Any], properties: dict[str, Any] | None) -> None:
    """Add the deadline of the running call to a message that is about to be published.

    A message whose deadline is ``None`` inherits none, and one with a deadline of its own gets
    the earlier of both.

    Args:
        headers: Headers of the message; changed.
        properties: Properties of the message, to which Celery moves ``deadline=``,
            ``idempotency_key=``, ``limit_keys=`` and ``weight=`` of ``send_task``
            (celery.app.amqp, send_task_message).
    """
    if properties and isinstance(properties.get("limit_keys"), Mapping):
        headers.setdefault(HEADER_LIMIT_KEYS, _keys(properties.pop("limit_keys")))
    if properties and "weight" in properties:
        headers.setdefault(HEADER_WEIGHT, properties.pop("weight"))
    if properties and "idempotency_key" in properties:
        headers.setdefault(HEADER_IDEMPOTENCY_KEY, properties.pop("idempotency_key"))
    if properties and "deadline" in properties:
        seconds = properties.pop("deadline")
        headers.setdefault(HEADER_DEADLINE, _header(seconds, Budget().escalation_factor))
    if HEADER_DEADLINE in headers and headers[HEADER_DEADLINE] is None:
        return
    own, inherited = Deadline.of(headers.get(HEADER_DEADLINE)), _inherited(headers.get("id"))
    kept = own.earlier(inherited) if own is not None else inherited
    if kept is not None:
        headers[HEADER_DEADLINE] = list(kept)


def _inherited(task_id: Any) -> Deadline | None:
    """Return the deadline of the running call that publishes a message, if it has one."""
    request, running = worker_request(), running_call()
    if running is not None and not takes_its_place(task_id):
        return running.deadline()
    if request is None:
        return None
    # After the body has ended: callbacks (link) inherit the deadline that the call was given, and
    # error callbacks inherit none.
    call = call_of(request)
    if call is not None and call.outcome not in (None, Outcome.SUCCEEDED):
        return None
    return Deadline.of(getattr(request, HEADER_DEADLINE, None))
