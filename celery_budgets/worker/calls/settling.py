"""Makes sure that every call is settled, even if user code, the backend or telemetry fails.

A call first gets its outcome and releases its slot, without running user code. Each step after
that (result, handlers, signals, events) may fail independently, and is logged.

Runs in the worker main process.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from copy import copy
from typing import Any

import celery
from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.trace import task_has_custom
from celery.exceptions import WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.utils.serialization import create_exception_cls, get_pickled_exception
from celery.worker import state
from kombu.utils.encoding import safe_repr

from celery_budgets.errors import BudgetsError, words_of
from celery_budgets.model.headers import HEADER_TERMS
from celery_budgets.worker.stacks.black_box import traceback_of

__all__ = ["UNSTORED", "contain", "fail", "passes", "storable"]

logger = logging.getLogger(__name__)

#: Marks a failure that Celery's trace has not stored; its own values are 1 (failed) and 0.
UNSTORED = 2
_STORES_ALL = celery.VERSION[:2] >= (5, 7)
#: Exceptions that stop the worker, also when a call on the solo pool raises them.
_STOPS = (WorkerShutdown, WorkerTerminate)


def passes(request: Any, tell: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Call *tell*, and return whether it succeeded.

    An error is logged with the task and its id, even one that is no :class:`Exception`: a
    handler that calls ``sys.exit`` would end the worker.
    """
    try:
        tell(*args, **kwargs)
    except _STOPS:
        raise
    except BaseException as exc:
        logger.error(
            "budgets.settling_failed task=%s task_id=%s in=%s: %s: %s\n%s",
            request.name, request.id, getattr(tell, "__qualname__", type(tell).__name__),
            type(exc).__name__, words_of(exc), _traceback_of(exc),
        )  # fmt: skip
        return False
    return True


def _traceback_of(exc: BaseException) -> str:
    """Return the traceback of *exc* as text, even if the ``__str__`` of *exc* raises."""
    try:
        return "".join(traceback.format_exception(exc))
    except BaseException:
        return "(its traceback cannot be printed)"


def fail(request: Any, exc: Exception) -> None:
    """Report that the call of *request* failed with *exc*, in place of its process.

    Stores the result and calls handlers, signals and events. Mirrors the middle of
    celery.worker.request.Request.on_timeout (5.7). Differs: each step may fail on its own.
    """
    task, context = request.task, request._context
    text = traceback_of(request.stacks, exc)
    if text is not None:
        exc.add_note(text)  # for handlers, which get no traceback that is a text
    passes(request, _store, request, exc, text)
    try:
        raise exc
    except type(exc):
        einfo = ExceptionInfo()
    if text is not None:
        vars(einfo).update(traceback=text)
    task.request_stack.push(context)
    try:
        about = (exc, request.id, request.args, request.kwargs)
        passes(request, task.on_failure, *about, einfo)
        if task_has_custom(task, "after_return"):
            passes(request, task.after_return, states.FAILURE, *about, None)
        passes(
            request, signals.task_failure.send, sender=task, task_id=request.id, exception=exc,
            args=request.args, kwargs=request.kwargs, traceback=exc.__traceback__, einfo=einfo,
        )  # fmt: skip
    finally:
        task.request_stack.pop()
        exc.__traceback__ = None  # its frame refers to this request
    # Not the exception of einfo, which is in billiard's wrapper until it has been pickled.
    shown = safe_repr(get_pickled_exception(exc))
    passes(request, request.send_event, "task-failed", exception=shown, traceback=einfo.traceback)


def _store(request: Any, exc: Exception, traceback: str | None) -> None:
    request.task.backend.mark_as_failure(
        request.id, exc, traceback, request=request._context, store_result=request.store_errors
    )


def storable(exc_info: ExceptionInfo, exc: BaseException) -> ExceptionInfo:
    """Return *exc_info* with an exception that Celery's backends store.

    Before 5.7 they store an Exception alone, and what else leaves a task has no result (celery.
    backends.base.Backend.encode_result). One of the same name and module stands in for it there.
    """
    if _STORES_ALL or isinstance(exc, Exception):
        return exc_info
    stand_in = create_exception_cls(type(exc).__name__, type(exc).__module__)
    try:
        arguments = exc.args
    except BaseException:
        arguments = ()
    told = copy(exc_info)
    vars(told).update(type=stand_in, exception=stand_in(*arguments))
    return told


def contain(pool: Any) -> None:
    """Make each call of *pool* return a result, whatever its task raises.

    Wraps ``on_apply`` of a pool whose calls run in this process. If an Exception leaves Celery's
    trace (a handler that raises Reject or MemoryError), celery.concurrency.base.apply_target calls
    no callback; for a BaseException it passes a bare ExceptionInfo on, and raises if that has no
    repr. On prefork billiard catches all of them.
    """
    apply = pool.on_apply

    def on_apply(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run *target* in the pool, wrapped; store the pool's handle on the request."""
        job = apply(_contained(target), *args, **kwargs)
        request = getattr(kwargs.get("accept_callback"), "__self__", None)
        if request is not None and hasattr(request, "job"):
            request.job = job
        return job

    pool.on_apply = on_apply


def _contained(target: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        """Return the result of *target*, or a failure in the form of celery.app.trace."""
        try:
            return target(*args, **kwargs)
        except _STOPS:
            raise
        except BaseException as exc:
            # The third argument is the request; that of a plain task has no terms.
            if len(args) < 3 or HEADER_TERMS not in args[2] or _is_of_the_pool(exc):
                raise
            return UNSTORED, _as_on_prefork(exc), 0.0

    return run


def _is_of_the_pool(exc: BaseException) -> bool:
    """Return whether *exc* is used by gevent to end a greenlet: a hard limit, or a stop."""
    name = type(exc).__name__
    return name == "Timeout" or (name == "GreenletExit" and bool(state.should_terminate))


def _as_on_prefork(exc: BaseException) -> ExceptionInfo:
    """Return the error that a pool process would report: a lost worker if *exc* would end it.

    Mirrors the end of billiard.pool.Worker.workloop, and Request._worker_lost_info (5.7).
    """
    words = f"{type(exc).__name__}({words_of(exc)})"
    told: Exception
    if isinstance(exc, SystemExit | KeyboardInterrupt):
        told = WorkerLostError(f"Worker exited prematurely: {words}")
    else:
        try:
            return ExceptionInfo()
        except BaseException:
            told = BudgetsError(f"{words}: its own code fails when it is reported")
    try:
        raise told from None
    except Exception:
        return ExceptionInfo()
