"""Runs the body of a call, and makes sure that no limit interrupts its thread afterwards.

See also: :mod:`celery_budgets.execution.limits.interrupts`, which knows how each pool is
interrupted.

Runs in the process that runs the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore, SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets.errors import MemoryLimitExceeded
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.limits.interrupts import Interrupt
from celery_budgets.execution.limits.watchdog import watchdog

__all__ = ["run_body", "run_to_end"]


def run_body(call: Call | None, body: Callable[[], Any]) -> Any:
    """Run *body* so that limits can interrupt it; ``call`` is ``None`` if it is not measured.

    Raises:
        Ignore: The worker stored the result at the hard limit already.
        TimeLimitExceeded: The body has ended past its hard limit.
    """
    if call is None:
        return body()
    interrupt, where = watchdog().interrupt, None
    try:
        try:
            interrupt.enter(call)
            result = body()
        finally:
            interrupt.leave(call)
    except BaseException as exc:
        _leave_for_good(interrupt, call)
        if not call.over_hard_limit(late=interrupt.judges_late):
            raise
        where = exc.__traceback__
    else:
        if not call.over_hard_limit(late=interrupt.judges_late):
            return result
    if interrupt.abandons:
        # The result was stored at the limit; nothing may overwrite it.
        raise Ignore
    try:
        # With the frames in which the limit has interrupted it.
        raise TimeLimitExceeded(call.limits.hard).with_traceback(where)
    finally:
        del where  # which refers to this frame


def run_to_end(call: Call | None, run: Callable[[], Any]) -> Any:
    """Return the result of *run*, which may skip the body, and close *call* after it.

    Raises:
        Ignore: The call was abandoned at its hard limit, before or instead of its body.
    """
    if call is None:
        return run()
    interrupt = watchdog().interrupt
    try:
        try:
            result = run()
        finally:
            if call.open:
                interrupt.leave(call)
    except BaseException:
        if call.open:
            _leave_for_good(interrupt, call)
        if not (call.hard_sent and interrupt.abandons):
            raise
    else:
        if not (call.hard_sent and interrupt.abandons):
            return result
    raise Ignore


def _leave_for_good(interrupt: Interrupt, call: Call) -> None:
    """Call ``leave`` until it succeeds: an interrupt may have aborted the first attempt."""
    while True:
        try:
            interrupt.leave(call)
            return
        except (SoftTimeLimitExceeded, MemoryLimitExceeded, HardLimitReached):
            continue
