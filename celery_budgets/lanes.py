"""Budgets and lanes: frozen, validated facts.

A *budget* is what one call may spend; a *lane* is a named class of work: one queue, its
concurrency, its budget; *lanes* is the whole table with the tools that go to each.

Covers: ranges, order and consistency, all problems reported at once.
Does not cover: where the values come from (:mod:`celery_budgets.settings`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

from celery_budgets.errors import ConfigurationError
from celery_budgets.units import MIB, format_duration, format_size, parse_duration, parse_size

__all__ = ["DEFAULT_LANES", "Budget", "BudgetFields", "Lane", "Lanes", "TimeLimits", "nearest"]


class TimeLimits(NamedTuple):
    """The two limits in force for one call, seconds from its start."""

    soft: float
    hard: float


class BudgetFields(TypedDict, total=False):
    """The fields of a :class:`Budget`, all optional, as keywords of a lane or a task."""

    timeout: float | str
    escalation_factor: float
    hard_timeout: float | str | None
    max_timeout: float | str | None
    max_rss: int | str
    rss_warning: int | str
    soft: Literal["raise", "warn"]
    memory: Literal["warn", "raise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one call may spend: time and memory, each with a soft and a hard limit.

    Durations are seconds or text such as ``"5m"``; sizes are bytes or text such as
    ``"512MiB"``.

    Raises:
        ConfigurationError: Lists everything wrong with the values.

    Example:
        >>> Budget(timeout="10m").hard_time_limit
        900.0
    """

    #: Soft time limit, seconds.
    timeout: float = 300.0
    #: Hard limits are this many times the soft ones, unless given themselves.
    escalation_factor: float = 1.5
    #: Hard time limit, seconds; ``None``: ``timeout`` x ``escalation_factor``.
    hard_timeout: float | None = None
    #: Highest soft limit that one call may ask for, seconds; ``None``: what the broker allows.
    max_timeout: float | None = None
    #: Memory limit of the process that runs the call, bytes of RSS.
    max_rss: int = 512 * MIB
    #: Level of the memory warning, bytes of RSS.
    rss_warning: int = 400 * MIB
    #: At the soft time limit: raise in the call, or only warn.
    soft: Literal["raise", "warn"] = "raise"
    #: At ``max_rss``: only warn, or raise in the call.
    memory: Literal["warn", "raise"] = "warn"

    def __post_init__(self) -> None:
        values, problems = _check_budget(asdict(self), "budget")
        ConfigurationError.raise_if(problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def soft_time_limit(self) -> float:
        """Seconds after which the call is asked to stop."""
        return self.timeout

    @property
    def hard_time_limit(self) -> float:
        """Seconds after which the call is killed."""
        return self.hard_timeout or self.timeout * self.escalation_factor

    @property
    def hard_rss(self) -> int:
        """Bytes of RSS at which the call is killed."""
        return int(self.max_rss * self.escalation_factor)

    def time_limits(
        self, *, soft: float | None = None, hard: float | None = None, ceiling: float | None = None
    ) -> TimeLimits:
        """Return the limits of one call, always complete and ordered.

        Args:
            soft: Soft limit that the call asks for, seconds; ``None``: this budget's.
            hard: Hard limit that the call asks for, seconds; ``None``: follows the soft one.
            ceiling: Highest soft limit where ``max_timeout`` is not set, seconds.

        A lone hard limit at or below the soft one keeps its own time: the soft limit moves below.
        """
        top = self.max_timeout or ceiling or math.inf
        if soft is None and hard is None:
            return TimeLimits(self.soft_time_limit, self.hard_time_limit)
        if soft is None:
            soft = self.soft_time_limit
        elif hard is None:
            hard = soft * self.escalation_factor
        assert hard is not None
        hard = min(hard, max(top * self.escalation_factor, self.hard_time_limit))
        soft = min(soft, max(top, self.soft_time_limit))
        return TimeLimits(soft if soft < hard else hard / self.escalation_factor, hard)

    def over(self, subject: str, changes: Mapping[str, Any]) -> Budget:
        """Return this budget with *changes*, checked anew.

        A changed ``timeout`` takes the hard limit along, a changed ``max_rss`` the level of the
        warning, unless that is changed too.

        Args:
            subject: What the problems are about, such as ``"lane 'critic'"``.
            changes: Fields of a budget by name.

        Raises:
            ConfigurationError: Lists everything wrong with the result.
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
        """Return the warning level that is to *max_rss* what this budget's is to its own."""
        try:
            return int(parse_size(max_rss) * self.rss_warning / self.max_rss)
        except (TypeError, ValueError):
            return self.rss_warning  # what is wrong with max_rss is said where it is checked


_DURATIONS = ("timeout", "hard_timeout", "max_timeout")
_SIZES = ("max_rss", "rss_warning")
_CHOICES = {"soft": ("raise", "warn"), "memory": ("warn", "raise")}
_OPTIONAL = frozenset({"hard_timeout", "max_timeout"})


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
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 1:
            raise ValueError(f"{value!r} must be a number above 1, such as 1.5")
        if math.isinf(value):
            raise ValueError(f"{value!r} must be finite")
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


@dataclass(frozen=True, slots=True, init=False)
class Lane:
    """A named class of work: one queue, its concurrency, its budget.

    Args:
        name: Letters, digits, ``_``, ``-`` and ``.``.
        concurrency: Calls that may run at once on one worker.
        queue: Queue at the broker; the lane's name by default.
        tools: Task names or globs that belong here.
        idempotent: ``False``: acknowledge early, never run a call twice on its own.
        budget: A whole budget; by default the one of the settings.
        **limits: Single fields of the budget, over it.

    Raises:
        ConfigurationError: Lists everything wrong with the values.

    Example:
        >>> Lane("critic", concurrency=3, timeout=600).budget.hard_time_limit
        900.0
    """

    name: str
    concurrency: int
    queue: str
    tools: tuple[str, ...]
    idempotent: bool
    budget: Budget
    #: What differs from the default budget, so that another default can be put below it.
    _limits: tuple[tuple[str, Any], ...] = field(repr=False, compare=False)

    def __init__(
        self,
        name: str,
        concurrency: int = 1,
        *,
        queue: str | None = None,
        tools: Iterable[str] = (),
        idempotent: bool = True,
        budget: Budget | None = None,
        **limits: Unpack[BudgetFields],
    ) -> None:
        problems = list(_lane_problems(name, concurrency, queue, tools, idempotent))
        base = budget if budget is not None else Budget()
        changes: dict[str, Any] = {} if budget is None else asdict(budget)
        changes |= limits
        try:
            settled = base.over(f"lane {name!r}", limits)
        except ConfigurationError as exc:
            problems += exc.problems
        ConfigurationError.raise_if(problems)
        for attribute, value in (
            ("name", name), ("concurrency", concurrency), ("queue", queue or name),
            ("tools", tuple(tools)), ("idempotent", idempotent), ("budget", settled),
            ("_limits", tuple(changes.items())),
        ):  # fmt: skip
            object.__setattr__(self, attribute, value)

    def on(self, default: Budget) -> Lane:
        """Return this lane with *default* below what it says itself."""
        return Lane(
            self.name,
            self.concurrency,
            queue=self.queue,
            tools=self.tools,
            idempotent=self.idempotent,
            budget=default.over(f"lane {self.name!r}", dict(self._limits)),
        )


def _lane_problems(
    name: Any, concurrency: Any, queue: Any, tools: Any, idempotent: Any
) -> Iterator[str]:
    if not isinstance(name, str) or not name or set(name) - _NAME_CHARACTERS:
        yield f"lane {name!r}: the name must be letters, digits, '_', '-' or '.'"
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        yield f"lane {name!r}: concurrency {concurrency!r} is no whole number; give 1 or more"
    elif concurrency < 1:
        yield f"lane {name!r}: concurrency {concurrency} must be 1 or more; or remove the lane"
    if queue is not None and (not isinstance(queue, str) or not queue):
        yield f"lane {name!r}: queue {queue!r} is not a queue's name"
    if isinstance(tools, str) or not all(isinstance(tool, str) and tool for tool in tools):
        yield f"lane {name!r}: tools {tools!r} must be a list of task names or globs"
    if not isinstance(idempotent, bool):
        yield f"lane {name!r}: idempotent {idempotent!r} must be True or False"


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

#: The lanes of an app that names none.
DEFAULT_LANES = (
    Lane("tool_call", concurrency=8),
    Lane("file_read", concurrency=16, tools=["fs_read"]),
    Lane("file_write", concurrency=4, tools=["fs_write"]),
    Lane("critic", concurrency=3, tools=["critics_run"]),
    Lane("forecast_model", concurrency=1, tools=["forecast_model"]),
)


class Lanes(Mapping[str, Lane]):
    """The whole table: lanes by name, the tools of each, the default, the sum.

    Args:
        lanes: The lanes.
        tools: Lane by task name or glob, before the lanes' own ``tools``.
        default: Name of the lane of everything that no tool names; ``None``: ``tool_call``, or
            the first lane where there is none of that name.
        global_concurrency: Calls that one worker may run at once over all its lanes.

    Raises:
        ConfigurationError: Lists everything wrong with the table.
    """

    def __init__(
        self,
        lanes: Iterable[Lane] = DEFAULT_LANES,
        *,
        tools: Mapping[str, str] | None = None,
        default: str | None = None,
        global_concurrency: int = 32,
    ) -> None:
        listed = tuple(lanes)
        self._by_name = {lane.name: lane for lane in listed}
        self._by_queue = {lane.queue: lane for lane in listed}
        self.global_concurrency = global_concurrency
        if default is None and "tool_call" not in self._by_name and listed:
            default = listed[0].name
        self._default = default or "tool_call"
        #: Lane name by task name or glob, first match wins.
        self.tools = dict(tools or {})
        for lane in listed:
            for tool in lane.tools:
                self.tools.setdefault(tool, lane.name)
        ConfigurationError.raise_if(self._problems(listed))
        self._exact = {
            tool: self._by_name[name] for tool, name in self.tools.items() if not _is_glob(tool)
        }
        self._globs = [
            (tool, self._by_name[name]) for tool, name in self.tools.items() if _is_glob(tool)
        ]

    def __getitem__(self, name: str) -> Lane:
        try:
            return self._by_name[name]
        except KeyError:
            raise ConfigurationError(
                f"lane {name!r} is not known; {nearest(name, self._by_name)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Lanes({', '.join(f'{lane.name}={lane.concurrency}' for lane in self.values())})"

    @property
    def default(self) -> Lane:
        """The lane of everything that no tool names."""
        return self._by_name[self._default]

    def of_queue(self, queue: str | None) -> Lane | None:
        """Return the lane of *queue*, or ``None`` for a queue of no lane."""
        return self._by_queue.get(queue) if queue else None

    def of_tool(self, task_name: str) -> Lane | None:
        """Return the lane that the tool table gives *task_name*, or ``None``."""
        lane = self._exact.get(task_name)
        if lane is None and self._globs:
            lane = next((lane for glob, lane in self._globs if fnmatchcase(task_name, glob)), None)
        return lane

    def unmatched_tools(self, task_names: Iterable[str]) -> list[str]:
        """Return a problem for each entry of the tool table that matches none of *task_names*."""
        names = list(task_names)
        return [
            f"tool {tool!r} of lane {lane!r} matches no registered task; {nearest(tool, names)}"
            for tool, lane in self.tools.items()
            if not any(fnmatchcase(name, tool) for name in names)
        ]

    def _problems(self, listed: tuple[Lane, ...]) -> Iterator[str]:
        if not listed:
            yield "lanes: there is none; name at least one"
            return
        yield from _twins(listed)
        if self._default not in self._by_name:
            yield (
                f"budgets_default_lane {self._default!r} is not a lane; "
                f"{nearest(self._default, self._by_name)}"
            )
        for tool, name in self.tools.items():
            if name not in self._by_name:
                yield (f"tool {tool!r}: lane {name!r} is not known; {nearest(name, self._by_name)}")
        total = sum(lane.concurrency for lane in listed)
        if isinstance(self.global_concurrency, bool) or not isinstance(
            self.global_concurrency, int
        ):
            yield (
                f"budgets_global_concurrency {self.global_concurrency!r} is not a whole number; "
                f"give {total} or more"
            )
        elif total > self.global_concurrency:
            yield (
                f"the lanes' concurrency adds up to {total}, above budgets_global_concurrency "
                f"({self.global_concurrency}); raise it to {total} or lower a lane's concurrency"
            )


def _twins(listed: tuple[Lane, ...]) -> Iterator[str]:
    seen: dict[tuple[str, str], Lane] = {}
    for lane in listed:
        for what, value in (("name", lane.name), ("queue", lane.queue)):
            twin = seen.setdefault((what, value), lane)
            if twin is lane:
                continue
            if what == "name":
                yield f"lane {value!r} is named twice; rename one"
            elif twin.name != lane.name:
                yield (
                    f"lanes {twin.name!r} and {lane.name!r} share the queue {value!r}; "
                    "give each a queue of its own"
                )


def _is_glob(tool: str) -> bool:
    return any(character in tool for character in "*?[")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown *name*: the nearest known one, and all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def _either(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)
