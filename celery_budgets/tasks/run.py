"""Runs one call under its budget, in the process that runs its body.

The worker decides on lane and limits (:mod:`celery_budgets.worker.request`) and sends them along.
This module measures the call, registers it with the watchdog, which enforces the limits, and
describes it on the current span. A failure of that is logged and never fails the call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from celery_budgets.config.settings import settings_of
from celery_budgets.errors import MemoryLimitExceeded, RejectedByBudget, Throttled
from celery_budgets.execution.body import run_body, run_to_end
from celery_budgets.execution.call import Call, HardLimitReached, Terms
from celery_budgets.execution.context import note_call
from celery_budgets.execution.flight.recorder import recorder
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.memory import rss as memory
from celery_budgets.execution.outcome import outcome_of
from celery_budgets.execution.safely import guarded
from celery_budgets.model.budget import TimeLimits
from celery_budgets.model.headers import (
    HEADER_DEADLINE,
    HEADER_IDEMPOTENCY_KEY,
    HEADER_WAITED_FOR,
    seconds_waited,
)
from celery_budgets.model.outcomes import Outcome
from celery_budgets.tasks.deadline_at_start import terms_at_start
from celery_budgets.tasks.task_call import TaskCall
from celery_budgets.telemetry import spans

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from celery_budgets.tasks.protocol import Budgeted

__all__ = ["run_in_budget"]

logger = logging.getLogger(__name__)

#: Maximum age of a memory reading at the start of a call, seconds: short calls share readings.
AGE = 0.005
#: Calls up to this long, in seconds, are not measured at their end: RSS is that of their start.
SHORTEST = 0.001


def run_in_budget(
    task: Budgeted, request: Any, terms: Iterable[Any], body: Callable[[], Any]
) -> Any:
    """Run *body* as a call of *task* under its budget, and return what it returns.

    Args:
        task: The task.
        request: The request of the call; passed because each ``task.request`` is a look-up.
        terms: The terms that the worker sent along (:class:`celery_budgets.execution.call.Terms`).
        body: Calls ``run`` of the task with its arguments, through overrides of ``__call__``.

    Raises:
        RejectedByBudget: Its deadline had passed before it began.
        TimeLimitExceeded: It has ended past its hard limit.
        MemoryLimitExceeded: In place of a bare ``MemoryError``.
        Ignore: The worker has stored a result already.
        BaseException: What the body raised.
    """
    call, span = _begin(task, request, _at_start(task, request, Terms(*terms)))
    outcome = Outcome.FAILED
    try:
        result = _run_once(task, request, call, body)
    except Throttled as exc:
        outcome = outcome_of(error := _go_back(task, request, exc))
        raise error from None
    except MemoryError as exc:
        # A bare MemoryError would stop the whole worker (celery.worker.request.on_failure).
        outcome = Outcome.MEMORY_LIMIT
        clear_frames(exc.__traceback__)
        over = MemoryLimitExceeded(memory.rss())
        raise over.with_traceback(exc.__traceback__) from None
    except (SystemExit, KeyboardInterrupt):
        outcome = Outcome.WORKER_LOST
        if call is not None and watchdog().interrupt.ends_process:
            # The process exits (billiard.pool.Worker.workloop): the worker reports the end.
            guarded(_leave_to_worker, task, call)
            call = None
        raise
    except BaseException as exc:
        outcome = _outcome_in(call, exc)
        if outcome is Outcome.MEMORY_LIMIT:
            # The traceback would keep the objects of the body alive until the next call.
            clear_frames(exc.__traceback__)
        raise
    else:
        outcome = Outcome.SUCCEEDED
        return result
    finally:
        if call is not None:
            guarded(_end, task, request, call, span, outcome)


def _outcome_in(call: Call | None, exc: BaseException) -> Outcome:
    outcome = outcome_of(exc)
    if call is not None and call.hard_sent:
        return Outcome.HARD_TIME_LIMIT
    if call is not None and call.terminated and outcome is Outcome.SOFT_TIME_LIMIT:
        return Outcome.REVOKED
    return outcome


def _at_start(task: Budgeted, request: Any, terms: Terms) -> Terms:
    if HEADER_DEADLINE not in vars(request):
        return terms
    try:
        return terms_at_start(terms, request)
    except RejectedByBudget:
        spans.leave_open(task, request.id)  # the worker ends it
        if HEADER_WAITED_FOR in vars(request):
            from celery_budgets.idempotency.run_once import stands_for_twin

            if stands_for_twin(vars(request), task.name, request.id):
                # Celery's trace still calls error callbacks; only the twin's result is kept.
                request.ignore_result = True
        raise


def _run_once(task: Budgeted, request: Any, call: Call | None, body: Callable[[], Any]) -> Any:
    if vars(request).get(HEADER_IDEMPOTENCY_KEY) is None:
        return run_body(call, body)
    from celery_budgets.idempotency.run_once import run_once  # and a client of Redis with it

    return run_to_end(call, partial(run_once, task, call, partial(run_body, call, body)))


def _go_back(task: Budgeted, request: Any, throttled: Throttled) -> Exception:
    from celery_budgets.tasks.throttling import go_back  # and a client of Redis with it

    return go_back(task, request, throttled)


def _begin(task: Budgeted, request: Any, terms: Terms) -> tuple[Call | None, Span | None]:
    """Start the call's clock and describe it on its span, if that is recorded.

    Returns no call if that fails: the body then runs unmeasured.
    """
    try:
        settings = settings_of(task.app)
        lane = settings.lanes[terms.lane]
        call = TaskCall(
            request.id, lane.name, task.budget_in(lane), TimeLimits(terms.soft, terms.hard),
            rss=memory.recent_rss(monotonic(), AGE), ceiling=terms.ceiling,
            hard_ceiling=terms.hard_ceiling, memory_guarded=settings.memory_guard,
            task=task, request=request,
        )  # fmt: skip
        note_call(request, call)
        span = spans.span_of(task, call.task_id)
        writer = recorder()
        call.moved = writer.deadlines
        writer.begin(call, *spans.span_ids(span))
        watchdog().watch(call)
    except (Exception, HardLimitReached):
        logger.exception("budgets.begin_failed task=%s: the call is not measured", task.name)
        return None, None
    if span is None or not settings.tracing:
        return call, None
    guarded(spans.begin, span, call, task, request, terms, settings.span_name)
    return call, span


def _leave_to_worker(task: Budgeted, call: Call) -> None:
    watchdog().release(call)
    spans.leave_open(task, call.task_id)


def _end(task: Budgeted, request: Any, call: Call, span: Span | None, outcome: Outcome) -> None:
    dog = watchdog()
    call.outcome = outcome
    dog.release(call)
    now = monotonic()
    if now - call.started_mono <= SHORTEST:
        call.close(now, call.rss_before)
    else:
        call.close(now, memory.rss())
        # Its arguments and result are freed after this, so the next call must measure again.
        memory.forget_recent()
    recorder().end(call)
    if call.hard_sent and dog.interrupt.abandons:
        spans.leave_open(task, call.task_id)  # ended by the worker when it was given up
    elif span is not None:
        waited = seconds_waited(vars(request), call.started_at)
        spans.end(span, call, outcome, waited, attributed=dog.interrupt.attributes_memory)
