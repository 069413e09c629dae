"""``Limit``: what all processes together may use of one thing, as a frozen, validated value.

A value only, made in every process. See also: :mod:`celery_budgets.shared_state.limit_store`, which
holds processes to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from celery_budgets.errors import ConfigurationError

__all__ = ["LIMIT_FIELDS", "Demand", "Limit", "Rate"]

#: What may be said of a limit beside its name.
LIMIT_FIELDS = frozenset({"concurrency", "rate", "burst", "key", "on_outage"})

_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smh])\s*", re.IGNORECASE)
#: With an @: of the package itself; settings refuse it.
_NAME = re.compile(r"@?[A-Za-z0-9_.-]+")


class Rate(NamedTuple):
    """So many calls in a period."""

    calls: float
    #: Length of the period, seconds.
    period: float

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Return the rate in text such as ``"10/s"``, ``"300/m"`` or ``"5000/h"``.

        Raises:
            ValueError: It is none, or 0.
        """
        match = _RATE.fullmatch(value) if isinstance(value, str) else None
        if match is None or not float(match[1]) > 0:
            raise ValueError(
                f"{value!r} is no rate; give calls in a second, minute or hour, such as '10/s', "
                "'300/m' or '5000/h'"
            )
        return cls(float(match[1]), _PERIODS[match[2].lower()])

    def __str__(self) -> str:
        units = {period: unit for unit, period in _PERIODS.items()}
        return f"{self.calls:g}/{units[self.period]}"

    @property
    def interval(self) -> float:
        """Seconds from one call to the next, at this rate."""
        return self.period / self.calls


@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """What all processes of an app together may use of one thing: an API, a GPU, a customer.

    Args:
        name: Letters, digits, ``_``, ``-`` and ``.``.
        concurrency: Calls that may run at once; by default any number.
        rate: Calls that may start, as text: ``"10/s"``, ``"300/m"`` or ``"5000/h"``.
        burst: Calls that may start at once after a quiet time; by default those of one second, at
            least 1.
        key: Name of an argument of the task, or a function of ``(args, kwargs)``: each value has
            the limit for itself. By default all calls share it.
        on_outage: What calls do while the Redis that keeps the limits does not answer: ``"wait"``
            or ``"run"``.

    Raises:
        ConfigurationError: Lists every problem with the values.

    Example:
        >>> Limit("openai", concurrency=20, rate="300/m").burst
        5
    """

    name: str
    concurrency: int | None
    rate: Rate | None
    burst: int
    key: str | Callable[[Any, Any], Any] | None
    on_outage: str

    def __init__(
        self,
        name: str,
        concurrency: int | None = None,
        *,
        rate: str | Rate | None = None,
        burst: int | None = None,
        key: str | Callable[[Any, Any], Any] | None = None,
        on_outage: str = "wait",
    ) -> None:
        problems = list(_problems(name, concurrency, rate, burst, key, on_outage))
        try:
            rate = rate if rate is None or isinstance(rate, Rate) else Rate.parse(rate)
        except ValueError as exc:
            problems.append(f"limit {name!r}: rate: {exc}")
        ConfigurationError.raise_if(problems)
        assert not isinstance(rate, str)
        second = max(1, math.floor(1 / rate.interval)) if rate is not None else 0
        for attribute, value in (
            ("name", name), ("concurrency", concurrency), ("rate", rate),
            ("burst", second if burst is None else burst), ("key", key), ("on_outage", on_outage),
        ):  # fmt: skip
            object.__setattr__(self, attribute, value)


class Demand(NamedTuple):
    """What one call needs of one limit."""

    limit: Limit
    #: The value of the limit's key; ``""`` if all calls share it.
    key: str = ""
    #: How many calls it counts for.
    weight: int = 1

    @property
    def title(self) -> str:
        """How its limit is named to people: that of a lane by the lane."""
        own = {"@lane": f"fleet of lane {self.key}", "@fleet": "budgets_fleet_concurrency"}
        return own.get(self.limit.name, self.limit.name)


def _problems(
    name: Any, concurrency: Any, rate: Any, burst: Any, key: Any, on_outage: Any
) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"limit {name!r}: the name must be letters, digits, '_', '-' or '.'"
    for what, value in (("concurrency", concurrency), ("burst", burst)):
        if value is not None and not _is_count(value):
            yield f"limit {name!r}: {what} {value!r} must be a whole number of 1 or more"
    if concurrency is None and rate is None:
        yield f"limit {name!r} limits nothing; give it a concurrency, a rate, or both"
    if burst is not None and rate is None:
        yield f"limit {name!r}: burst {burst!r} is for a rate, and it has none; give it a rate"
    if key is not None and not callable(key) and not (isinstance(key, str) and key.isidentifier()):
        yield (
            f"limit {name!r}: key {key!r} must be the name of an argument, or a function of "
            "(args, kwargs)"
        )
    if on_outage not in ("wait", "run"):
        yield f"limit {name!r}: on_outage {on_outage!r} is not one of 'wait', 'run'"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
