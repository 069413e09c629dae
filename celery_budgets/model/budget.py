"""Budgets: the limits of one call, as frozen, validated values.

Covers: ranges, order and consistency; all problems are reported at once.
Does not cover: which budget a call gets (:mod:`celery_budgets.model.lanes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypedDict

from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.units import (
    MIB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    scaled,
)

__all__ = [
    "Budget",
    "BudgetFields",
    "TimeLimits",
    "checked_limit",
    "limits_in_message",
    "seconds_or_none",
]


class TimeLimits(NamedTuple):
    """The two limits in force for one call, seconds from its start."""

    soft: float
    hard: float


class BudgetFields(TypedDict, total=False):
    """The fields of a :class:`Budget`, all optional, as keyword arguments of a lane or a task."""

    timeout: float | str
    escalation_factor: float
    hard_timeout: float | str | None
    max_timeout: float | str | None
    max_rss: int | str
    rss_warning: int | str
    soft: Literal["raise", "warn"]
    memory: Literal["warn", "raise"]
    children: Literal["end", "leave"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of one call: time and memory, each with a soft and a hard limit.

    Durations are seconds or text such as ``"5m"``; sizes are bytes or text such as
    ``"512MiB"``.

    Raises:
        ConfigurationError: Lists every problem with the values.

    Example:
        >>> Budget(timeout="10m").hard_time_limit
        900.0
    """

    #: Soft time limit, seconds.
    timeout: float = 300.0
    #: Hard limits are this many times the soft ones, unless set themselves.
    escalation_factor: float = 1.5
    #: Hard time limit, seconds; ``None``: ``timeout`` x ``escalation_factor``.
    hard_timeout: float | None = None
    #: Highest soft limit that one call may request, seconds; ``None``: what the broker allows.
    max_timeout: float | None = None
    #: Memory limit of the process that runs the call, bytes of RSS.
    max_rss: int = 512 * MIB
    #: Level of the memory warning, bytes of RSS.
    rss_warning: int = 400 * MIB
    #: Action at the soft time limit: raise in the call, or only warn.
    soft: Literal["raise", "warn"] = "raise"
    #: Action at ``max_rss``: only warn, or raise in the call.
    memory: Literal["warn", "raise"] = "warn"
    #: Child processes of a call (prefork): count their memory as the call's and end them when the
    #: call is killed, or leave them alone.
    children: Literal["end", "leave"] = "end"

    def __post_init__(self) -> None:
        values, problems = _check_budget(asdict(self), "budget")
        ConfigurationError.raise_if(problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def soft_time_limit(self) -> float:
        """Soft time limit: seconds after which ``SoftTimeLimitExceeded`` is raised in the call."""
        return self.timeout

    @property
    def hard_time_limit(self) -> float:
        """Hard time limit: seconds after which the call is killed."""
        return self.hard_timeout or scaled(self.timeout, self.escalation_factor)

    @property
    def hard_rss(self) -> int:
        """Hard memory limit: bytes of RSS above which the call is killed."""
        return int(self.max_rss * self.escalation_factor)

    def time_limits(
        self, *, soft: float | None = None, hard: float | None = None, ceiling: float | None = None
    ) -> TimeLimits:
        """Return the time limits of one call: both set, the soft one first.

        Args:
            soft: Soft limit that the call requests, seconds; ``None``: this budget's.
            hard: Hard limit that the call requests, seconds; ``None``: follows the soft one.
            ceiling: Highest soft limit where ``max_timeout`` is not set, seconds.

        A lone hard limit at or below the soft one is kept: the soft limit moves below it.
        """
        top = self.max_timeout or ceiling or math.inf
        if soft is None and hard is None:
            return TimeLimits(self.soft_time_limit, self.hard_time_limit)
        if soft is None:
            soft = self.soft_time_limit
        elif hard is None:
            hard = scaled(soft, self.escalation_factor)
        assert hard is not None
        hard = min(hard, max(scaled(top, self.escalation_factor), self.hard_time_limit))
        soft = min(soft, max(top, self.soft_time_limit))
        return TimeLimits(soft if soft < hard else scaled(hard, 1 / self.escalation_factor), hard)

    def over(self, subject: str, changes: Mapping[str, Any]) -> Budget:
        """Return this budget with *changes*, validated again.

        A changed ``timeout`` scales the hard limit, and a changed ``max_rss`` the warning level,
        unless that is changed too.

        Args:
            subject: Subject of the error messages, such as ``"lane 'critic'"``.
            changes: Fields of a budget by name.

        Raises:
            ConfigurationError: Lists every problem with the result.
        """
        merged = asdict(self)
        if "timeout" in changes:
            merged["hard_timeout"] = None
        merged |= changes
        if "max_rss" in changes and "rss_warning" not in changes:
            merged["rss_warning"] = self._warning_below(merged["max_rss"])
        values, problems = _check_budget(merged, subject)
        ConfigurationError.raise_if(problems)
        return Budget(**values)

    def _warning_below(self, max_rss: Any) -> int:
        """Return the warning level for *max_rss*, in the proportion of this budget."""
        try:
            return int(parse_size(max_rss) * self.rss_warning / self.max_rss)
        except (TypeError, ValueError):
            return self.rss_warning  # max_rss is invalid, which its own check reports


_DURATIONS = ("timeout", "hard_timeout", "max_timeout")
_SIZES = ("max_rss", "rss_warning")
_CHOICES = {
    "soft": ("raise", "warn"),
    "memory": ("warn", "raise"),
    "children": ("end", "leave"),
}
_OPTIONAL = frozenset({"hard_timeout", "max_timeout"})
_HIGHEST_FACTOR = 1000


def _check_budget(given: Mapping[str, Any], subject: str) -> tuple[dict[str, Any], list[str]]:
    """Return the values converted to base units, and every problem with them."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        try:
            values[name] = _convert(name, value)
        except (TypeError, ValueError) as exc:
            problems.append(f"{subject}: {name}: {exc}")
    return values, problems or [f"{subject}: {problem}" for problem in _order_problems(values)]


def _convert(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{value!r} is not one of {_either(_CHOICES[name])}")
        return value
    if name == "escalation_factor":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 1 < value <= _HIGHEST_FACTOR:
            raise ValueError(
                f"{value!r} must be a number above 1, such as 1.5, and at most {_HIGHEST_FACTOR}"
            )
        return float(value)
    parsers = {**dict.fromkeys(_DURATIONS, parse_duration), **dict.fromkeys(_SIZES, parse_size)}
    if name not in parsers:
        raise ValueError(f"no such field; {nearest(name, BudgetFields.__annotations__)}")
    number = parsers[name](value)
    if number <= 0:
        raise ValueError(f"{value!r} must be above 0; leave it out for the default")
    return number


def _order_problems(values: Mapping[str, Any]) -> Iterator[str]:
    soft, hard, top = values["timeout"], values["hard_timeout"], values["max_timeout"]
    if hard is not None and soft >= hard:
        yield (
            f"timeout ({format_duration(soft)}, soft) must be below hard_timeout "
            f"({format_duration(hard)}); raise hard_timeout or lower timeout"
        )
    if top is not None and top < soft:
        yield (
            f"max_timeout ({format_duration(top)}) must not be below timeout "
            f"({format_duration(soft)}); raise max_timeout or lower timeout"
        )
    if values["rss_warning"] >= values["max_rss"]:
        yield (
            f"rss_warning ({format_size(values['rss_warning'])}) must be below max_rss "
            f"({format_size(values['max_rss'])}); raise max_rss or lower rss_warning"
        )


def _either(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)


def checked_limit(name: str, value: Any) -> float:
    """Return a time limit that a call requests, in seconds.

    Raises:
        ValueError: *value* is no duration, or not above 0.
    """
    try:
        seconds = parse_duration(value)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{name}: {exc}") from None
    if seconds <= 0:
        raise ValueError(f"{name}: {value!r} must be above 0; leave it out for the lane's")
    return seconds


def seconds_or_none(value: Any) -> float | None:
    """Return *value* in seconds, or ``None`` if it is no valid limit.

    For values that cannot be rejected any more, such as those in a received message.
    """
    if value is None:
        return None  # the usual case; an exception takes longer
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None


def limits_in_message(header: Any) -> tuple[float | None, float | None]:
    """Return the (hard, soft) limits in a message's ``timelimit`` header, which may be invalid."""
    if not isinstance(header, list | tuple) or len(header) != 2:
        return None, None
    return seconds_or_none(header[0]), seconds_or_none(header[1])
