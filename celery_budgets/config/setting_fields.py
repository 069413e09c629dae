"""The table of settings: the default, the validation and the description of each.

See also: :mod:`celery_budgets.config.settings`, which reads an app's configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from celery_budgets.model.lanes import Lane
from celery_budgets.model.limit import Limit
from celery_budgets.units import parse_duration, parse_size

__all__ = ["FIELDS", "Field"]


class Field(NamedTuple):
    """One setting: its default, the function that validates its value, and its description."""

    default: Any
    convert: Callable[[Any], Any]
    help: str


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _FLAGS:
        return _FLAGS[value.lower()]
    raise ValueError(f"{value!r} must be True or False")


_FLAGS = {"true": True, "yes": True, "on": True, "1": True,
          "false": False, "no": False, "off": False, "0": False}  # fmt: skip


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a whole number") from None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a number") from None


def _between(convert: Callable[[Any], Any], low: float, high: float) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        number = convert(value)
        if not low <= number <= high:
            raise ValueError(f"{value!r} must be between {low:g} and {high:g}")
        return number

    return checked


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _above_zero(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        number = convert(value)
        if not number > 0:
            raise ValueError(f"{value!r} must be above 0")
        return number

    return checked


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} must be text")
    return value


def _redis_url(value: Any) -> str:
    text = _text(value)
    if not text.startswith(("redis://", "rediss://", "unix://")):
        # Not the value, which may contain a password.
        raise ValueError("it must be a Redis address such as 'redis://localhost:6379/2'")
    return text


def _span_name(value: Any) -> str:
    text = _text(value)
    try:
        text.format(lane="lane", task="task")
    except (LookupError, ValueError, AttributeError):
        raise ValueError(f"{value!r} may use only {{lane}} and {{task}}") from None
    return text


def _one_of(*words: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, words))}")
        return value

    return checked


def _stacks(value: Any) -> bool | str:
    return "all" if value == "all" else _flag(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{value!r} is not JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} must be a mapping")
    return value


def _tools(value: Any) -> Mapping[str, str]:
    tools = _mapping(value)
    for tool, lane in tools.items():
        if not (isinstance(tool, str) and tool and isinstance(lane, str)):
            raise ValueError(f"{tool!r}: {lane!r} must be a task name or glob, and a lane's name")
    return tools


def _lanes(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(lane, Lane) for lane in value):
        return tuple(value)
    return _mapping(value)


def _limits(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(limit, Limit) for limit in value):
        return tuple(value)
    return _mapping(value)


#: Every setting by name without its prefix.
FIELDS: dict[str, Field] = {
    "lanes": Field(None, _optional(_lanes), "the lanes, as a mapping or a list of `Lane`"),
    "tools": Field({}, _tools, "lane by task name or glob"),
    "default_lane": Field(None, _optional(_text), "lane of everything else"),
    "global_concurrency": Field(32, _above_zero(_whole), "calls at once over all lanes"),
    "limits": Field({}, _limits, "limits over the fleet, as a mapping or a list of `Limit`"),
    "fleet_concurrency": Field(
        None, _optional(_above_zero(_whole)), "calls at once over all lanes and all workers"
    ),
    "priorities": Field(False, _flag, "serve calls of high priority first, of low priority last"),
    "priority_aging": Field(
        60.0, _above_zero(parse_duration), "longest wait of low priority calls in a busy lane"
    ),
    "timeout": Field(300.0, parse_duration, "soft time limit, seconds or text"),
    "escalation_factor": Field(1.5, _number, "hard limits are this many times the soft ones"),
    "max_timeout": Field(None, _optional(parse_duration), "highest soft limit of one call"),
    "max_rss": Field("512MiB", parse_size, "memory limit of a process that runs calls"),
    "rss_warning": Field("400MiB", parse_size, "level of the memory warning"),
    "children": Field(
        "end",
        _one_of("end", "leave"),
        "child processes of a killed call: end them or leave them",
    ),
    "max_worker_rss": Field(
        None, _optional(_above_zero(parse_size)), "memory limit of a whole worker"
    ),
    "memory_guard": Field(True, _flag, "enforce memory limits and pause at the memory gate"),
    "rejection": Field("requeue", _one_of("requeue", "fail"), "what to do with a rejected call"),
    "max_pause": Field(60.0, _above_zero(parse_duration), "longest pause while no call runs"),
    "max_abandoned_threads": Field(
        4, _between(_whole, 0, 1_000_000), "abandoned threads after which the worker shuts down"
    ),
    "idempotency_url": Field(
        None,
        _optional(_redis_url),
        "Redis for idempotency keys; None: the result backend or the broker",
    ),
    "idempotency_retention": Field(
        86400.0, _above_zero(parse_duration), "how long a key and its result are kept"
    ),
    "progress_retention": Field(
        604800.0,
        _above_zero(parse_duration),
        "how long a state that a call has saved is kept for its next attempt",
    ),
    "idempotency_lease": Field(
        30.0,
        _between(parse_duration, 1, 86400),
        "when the key of a lost process is free again",
    ),
    "stop_grace": Field(
        None,
        _optional(_above_zero(parse_duration)),
        "time from SIGTERM to SIGKILL; None: `worker_soft_shutdown_timeout`, if that is above 0",
    ),
    "drain_cutoff": Field(
        0.05,
        _between(_number, 0.0, 1.0),
        "at a stop, a call whose chance to end in time is lower is handed back at once",
    ),
    "redis_transport": Field(
        "budgets",
        _one_of("budgets", "kombu"),
        "who fetches messages from Redis: `budgets`, atomically and with renewal, or `kombu`",
    ),
    "backlog": Field(
        True, _flag, "read every 5 s how many messages wait for each lane at the broker"
    ),
    "tracing": Field(True, _flag, "enrich the spans of calls, and complete those of killed calls"),
    "span_sample_rate": Field(
        1.0,
        _between(_number, 0.0, 1.0),
        "share of traces that are recorded, unless `OTEL_TRACES_SAMPLER` is set",
    ),
    "span_name": Field(
        "worker_call:{lane}", _optional(_span_name), "name of a call's span; None: unchanged"
    ),
    "stacks": Field(
        True,
        _stacks,
        'take the stack of a call that is killed or asked for: of its body, of `"all"` threads '
        "of its process, or not at all",
    ),
    "json_logs": Field(False, _flag, "log the records of calls as JSON lines"),
    "metrics_host": Field("127.0.0.1", _text, "address that the metrics port listens on"),
    "metrics_port": Field(None, _optional(_between(_whole, 0, 65535)), "port for Prometheus"),
}
