"""``Lane``: a named class of work, as a frozen, validated value.

See also: :mod:`celery_budgets.model.lanes`, the table of all lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Unpack

from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.model.budget import Budget, BudgetFields
from celery_budgets.model.priority import Priority
from celery_budgets.units import parse_duration

__all__ = ["Lane"]


@dataclass(frozen=True, slots=True, init=False)
class Lane:
    """A named class of work: one queue, its concurrency, its budget.

    Args:
        name: Letters, digits, ``_``, ``-`` and ``.``.
        concurrency: Calls that may run at once on one worker.
        fleet: Calls that may run at once over all workers; by default any number.
        queue: Queue at the broker; the lane's name by default.
        tools: Names or globs of the tasks that belong to this lane.
        idempotent: ``False``: acknowledge early, so that no call is redelivered or run again.
        min: Slots that are never lent to another lane; by default all of them.
        max: Calls that may run at once including slots borrowed from idle lanes; by default
            *concurrency*.
        priority: Priority of calls that name none: ``"high"``, ``"normal"`` or ``"low"``; needs
            ``budgets_priorities``.
        slo: Wait that is promised, seconds or text such as ``"5s"``: from sending, or the ETA, to
            the start; by default none.
        budget: A complete budget; by default the one of the settings.
        **limits: Single fields that override the budget.

    Raises:
        ConfigurationError: Lists every problem with the values.

    Example:
        >>> Lane("critic", concurrency=3, timeout=600).budget.hard_time_limit
        900.0
    """

    name: str
    concurrency: int
    fleet: int | None
    queue: str
    tools: tuple[str, ...]
    idempotent: bool
    min: int | None
    max: int | None
    priority: Priority
    slo: float | None
    budget: Budget
    #: The overrides of the default budget, so that they can be applied to another default.
    _limits: tuple[tuple[str, Any], ...] = field(repr=False, compare=False)

    def __init__(
        self,
        name: str,
        concurrency: int = 1,
        *,
        fleet: int | None = None,
        queue: str | None = None,
        tools: Iterable[str] = (),
        idempotent: bool = True,
        min: int | None = None,  # noqa: A002  the words of the configuration
        max: int | None = None,  # noqa: A002
        priority: str = Priority.NORMAL,
        slo: float | str | None = None,
        budget: Budget | None = None,
        **limits: Unpack[BudgetFields],
    ) -> None:
        if isinstance(tools, Iterable) and not isinstance(tools, str):
            tools = tuple(tools)
        problems = list(_lane_problems(name, concurrency, queue, tools, idempotent, budget))
        problems += _sharing_problems(name, concurrency, min, max)
        problems += _fleet_problems(name, fleet)
        known = {key: value for key, value in limits.items() if key in _BUDGET_FIELDS}
        problems += [
            f"lane {name!r}: {key}: no such field; {nearest(key, _BUDGET_FIELDS | _LANE_FIELDS)}"
            for key in limits
            if key not in known
        ]
        try:
            priority = Priority.named(priority, f"lane {name!r}")
        except ConfigurationError as exc:
            problems += exc.problems
        try:
            slo = None if slo is None else _wait(slo)
        except (TypeError, ValueError) as exc:
            problems.append(f"lane {name!r}: slo: {exc}")
        base = budget if isinstance(budget, Budget) else Budget()
        try:
            settled = base.over(f"lane {name!r}", known)
        except ConfigurationError as exc:
            problems += exc.problems
        ConfigurationError.raise_if(problems)
        changes = known if budget is None else asdict(settled)
        for attribute, value in (
            ("name", name), ("concurrency", concurrency), ("fleet", fleet),
            ("queue", queue or name), ("tools", tools), ("idempotent", idempotent),
            ("min", min), ("max", max), ("priority", priority), ("slo", slo), ("budget", settled),
            ("_limits", tuple(changes.items())),
        ):  # fmt: skip
            object.__setattr__(self, attribute, value)

    def on(self, default: Budget) -> Lane:
        """Return this lane with its overrides applied to *default*."""
        return Lane(
            self.name,
            self.concurrency,
            fleet=self.fleet,
            queue=self.queue,
            tools=self.tools,
            idempotent=self.idempotent,
            min=self.min,
            max=self.max,
            priority=self.priority,
            slo=self.slo,
            budget=default.over(f"lane {self.name!r}", dict(self._limits)),
        )


def _lane_problems(
    name: Any, concurrency: Any, queue: Any, tools: Any, idempotent: Any, budget: Any
) -> Iterator[str]:
    if not isinstance(name, str) or not name or set(name) - _NAME_CHARACTERS:
        yield f"lane {name!r}: the name must be letters, digits, '_', '-' or '.'"
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        yield f"lane {name!r}: concurrency {concurrency!r} is no whole number; give 1 or more"
    elif concurrency < 1:
        yield f"lane {name!r}: concurrency {concurrency} must be 1 or more; or remove the lane"
    if queue is not None and (not isinstance(queue, str) or not queue):
        yield f"lane {name!r}: queue {queue!r} is not a queue's name"
    if not isinstance(tools, tuple) or not all(isinstance(tool, str) and tool for tool in tools):
        yield f"lane {name!r}: tools {tools!r} must be a list of task names or globs"
    if not isinstance(idempotent, bool):
        yield f"lane {name!r}: idempotent {idempotent!r} must be True or False"
    if budget is not None and not isinstance(budget, Budget):
        yield f"lane {name!r}: budget {budget!r} is not a Budget; give single fields of one here"


def _fleet_problems(name: Any, fleet: Any) -> Iterator[str]:
    if fleet is not None and (isinstance(fleet, bool) or not isinstance(fleet, int) or fleet < 1):
        yield (
            f"lane {name!r}: fleet {fleet!r} must be a whole number of 1 or more: the calls that "
            "run at once over all workers"
        )


def _wait(value: float | str) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} must be above 0; leave it out to promise nothing")
    return seconds


def _sharing_problems(name: Any, concurrency: Any, least: Any, most: Any) -> Iterator[str]:
    for what, value in (("min", least), ("max", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            yield f"lane {name!r}: {what} {value!r} is no whole number"
            return
    if not isinstance(concurrency, int):
        return
    if least is not None and not 0 <= least <= concurrency:
        yield (
            f"lane {name!r}: min {least} must be between 0 and its concurrency ({concurrency}): "
            "the slots that it keeps for itself"
        )
    if most is not None and most < concurrency:
        yield (
            f"lane {name!r}: max {most} is below its concurrency ({concurrency}); raise it, or "
            "leave it out to borrow nothing"
        )


_BUDGET_FIELDS = frozenset(BudgetFields.__annotations__)
_LANE_FIELDS = frozenset(
    {
        "concurrency", "fleet", "queue", "tools", "idempotent", "min", "max", "priority", "slo",
        "budget",
    }
)  # fmt: skip
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
