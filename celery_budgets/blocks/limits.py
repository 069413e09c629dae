"""Computes the limits of a block from its own budget and the enclosing call.

See also: :mod:`celery_budgets.blocks.interrupt`, which enforces them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from time import monotonic
from typing import Any

from celery_budgets.errors import ConfigurationError, RejectedByBudget
from celery_budgets.execution.call import Call, HardLimitReached
from celery_budgets.execution.outcome import outcome_of_block
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.model.outcomes import Outcome
from celery_budgets.model.reasons import REASON_DEADLINE
from celery_budgets.units import scaled

__all__ = [
    "cause_of", "end_no_later", "is_over_hard_limit", "limits_within", "outcome_at_end", "parsed",
    "refuse_generator",
]  # fmt: skip


def limits_within(parent: Call | None, budget: Budget, lane: str) -> tuple[TimeLimits, TimeLimits]:
    """Return the limits of a block that starts now, and the highest limits it may extend to.

    Raises:
        RejectedByBudget: The enclosing call has exceeded its hard limit.
    """
    soft, hard = budget.soft_time_limit, budget.hard_time_limit
    top = budget.max_timeout or math.inf
    if parent is None:
        return TimeLimits(soft, hard), TimeLimits(top, math.inf)
    now = monotonic()
    left = TimeLimits(round(parent.soft_at - now, 6), round(parent.hard_at - now, 6))
    if left.hard <= 0:
        raise RejectedByBudget(REASON_DEADLINE, lane)
    if left.soft <= 0:
        # The enclosing call is past its soft limit, and uses this block to clean up.
        left = TimeLimits(scaled(left.hard, 1 / budget.escalation_factor), left.hard)
    soft, hard = min(soft, left.soft), min(hard, left.hard)
    limits = TimeLimits(soft if soft < hard else scaled(hard, 1 / budget.escalation_factor), hard)
    return limits, TimeLimits(min(top, left.soft), left.hard)


def end_no_later(call: Call, parent: Call) -> None:
    """Move the limits of *call* to those of *parent* where they would be later.

    They differ by microseconds at most; equal, both are due at once and only one interrupts.
    """
    call.bring_forward(hard_at=parent.hard_at)
    if parent.soft_at > monotonic():
        call.bring_forward(soft_at=parent.soft_at)
        call.ceiling = min(call.ceiling, parent.soft_at - call.started_mono)
    call.hard_ceiling = min(call.hard_ceiling, parent.hard_at - call.started_mono)


def is_over_hard_limit(call: Call, error: BaseException | None) -> bool:
    """Return whether the block ended by its hard limit, and not by a stronger cause."""
    if isinstance(error, HardLimitReached):
        return call.hard_sent  # else it is that of the enclosing call, which handles it
    if error is not None and not isinstance(error, Exception):
        return False
    return call.over_hard_limit(late=True)


def outcome_at_end(call: Call, error: BaseException | None, *, over: bool) -> Outcome:
    """Return how a block has ended with *error*, *over* its hard limit or not."""
    return Outcome.HARD_TIME_LIMIT if over else outcome_of_block(error, call)


def parsed(lane: str, name: str, parse: Callable[[Any], Any], value: Any) -> Any:
    """Return *value* of the argument *name*, converted to a number by *parse*.

    Raises:
        ConfigurationError: It is no valid number, or below 0.
    """
    if value is None:
        return None
    try:
        number = parse(value)
        if number < 0:
            raise ValueError(f"{value!r} must not be below 0")
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"budgets.call({lane!r}): {name}: {exc}") from None
    return number


def cause_of(error: BaseException | None) -> BaseException | None:
    """Return the cause for a limit's exception: *error*, unless it is our own interrupt."""
    return None if isinstance(error, HardLimitReached) else error


def refuse_generator(function: Callable[..., Any]) -> None:
    """Raise TypeError if *function* yields to its caller, whom a limit would interrupt."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{function.__qualname__} yields to its caller: a limit would interrupt the caller"
        )
