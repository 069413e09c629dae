"""Settings: the only reader of the ``budgets_*`` keys of an app's configuration.

They may stand in ``app.conf``, a configuration module, a namespaced one such as Django's
(``CELERY_BUDGETS_TIMEOUT``), or the environment under that same name, which wins.

See also: the README's table of settings, which a test holds against :data:`FIELDS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from celery_budgets.errors import ConfigurationError
from celery_budgets.lanes import DEFAULT_LANES, Budget, Lane, Lanes, nearest
from celery_budgets.units import parse_duration, parse_size

__all__ = ["ENVIRONMENT_PREFIX", "FIELDS", "PREFIX", "Settings", "declare", "reread", "settings_of"]

PREFIX = "budgets_"
ENVIRONMENT_PREFIX = "CELERY_BUDGETS_"

#: Settings that are a field of the default budget.
_BUDGET_FIELDS = ("timeout", "escalation_factor", "max_timeout", "max_rss", "rss_warning")


@dataclass(frozen=True, slots=True)
class Field:
    """One setting: its default, how text becomes its value, and what it is for."""

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
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    try:
        return float(value)
    except (TypeError, ValueError):
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


def _span_name(value: Any) -> str:
    text = _text(value)
    try:
        text.format(lane="lane", task="task")
    except (KeyError, IndexError, ValueError):
        raise ValueError(f"{value!r} may use only {{lane}} and {{task}}") from None
    return text


def _one_of(*words: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, words))}")
        return value

    return checked


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{value!r} is not JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} must be a mapping")
    return value


def _lanes(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(lane, Lane) for lane in value):
        return tuple(value)
    return _mapping(value)


#: Every setting by name without its prefix.
FIELDS: dict[str, Field] = {
    "lanes": Field(None, _optional(_lanes), "the lanes, as a mapping or a list of `Lane`"),
    "tools": Field({}, _mapping, "lane by task name or glob"),
    "default_lane": Field(None, _optional(_text), "lane of everything else"),
    "global_concurrency": Field(32, _above_zero(_whole), "calls at once over all lanes"),
    "timeout": Field(300.0, parse_duration, "soft time limit, seconds or text"),
    "escalation_factor": Field(1.5, _number, "hard limits are this many times the soft ones"),
    "max_timeout": Field(None, _optional(parse_duration), "highest soft limit of one call"),
    "max_rss": Field("512MiB", parse_size, "memory limit of a process that runs calls"),
    "rss_warning": Field("400MiB", parse_size, "level of the memory warning"),
    "max_worker_rss": Field(
        None, _optional(_above_zero(parse_size)), "memory limit of a whole worker"
    ),
    "memory_guard": Field(True, _flag, "watch memory at all"),
    "rejection": Field("requeue", _one_of("requeue", "fail"), "what becomes of a rejected call"),
    "max_pause": Field(60.0, _above_zero(parse_duration), "longest pause with nothing running"),
    "max_abandoned_threads": Field(
        4, _between(_whole, 0, 1_000_000), "threads past their hard limit before the worker leaves"
    ),
    "tracing": Field(True, _flag, "enrich and complete spans"),
    "span_sample_rate": Field(1.0, _between(_number, 0.0, 1.0), "share of traces kept"),
    "span_name": Field(
        "worker_call:{lane}", _optional(_span_name), "name of a call's span; None keeps Celery's"
    ),
    "json_logs": Field(False, _flag, "print the records of calls as JSON lines"),
    "metrics_port": Field(None, _optional(_between(_whole, 0, 65535)), "port for Prometheus"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one app, converted and checked."""

    lanes: Lanes
    #: The budget of a lane that says nothing else.
    budget: Budget
    max_worker_rss: int | None
    memory_guard: bool
    rejection: str
    max_pause: float
    max_abandoned_threads: int
    tracing: bool
    span_sample_rate: float
    span_name: str | None
    json_logs: bool
    metrics_port: int | None

    @classmethod
    def of(cls, app: Any, lanes: Iterable[Lane] | None = None) -> Settings:
        """Return the settings of *app*, read from its configuration and the environment.

        Args:
            app: The Celery app; its configuration is read.
            lanes: The lanes, where the program gives them itself.

        Raises:
            ConfigurationError: Lists everything wrong, not only the first.
        """
        given = _given(app.conf)
        return cls.from_mapping(given, lanes)

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, Any], lanes: Iterable[Lane] | None = None
    ) -> Settings:
        """Return the settings in *given*, names without their prefix."""
        problems = [
            f"setting {PREFIX}{name} is not known; {nearest(PREFIX + name, _known())}"
            for name in given
            if name not in FIELDS
        ]
        values = _convert_all(given, problems)
        budget = _default_budget(given, values, problems)
        listed = _listed(lanes if lanes is not None else values.pop("lanes"), budget, problems)
        values.pop("lanes", None)
        table = _table(listed, values, problems)
        ConfigurationError.raise_if(problems)
        assert table is not None
        return cls(lanes=table, budget=budget, **values)


def _known() -> list[str]:
    return [PREFIX + name for name in FIELDS]


def _given(conf: Any) -> dict[str, Any]:
    """Return every ``budgets_*`` key that somebody set, by its name without the prefix."""
    # The last map holds Celery's own defaults; the namespace is kept as the view's prefix.
    given: dict[str, Any] = {}
    namespace = (conf.prefix or "").lower()
    for layer in reversed(conf.maps[:-1]):
        for key in list(layer.keys()):
            name = str(key).lower().removeprefix(namespace)
            if name.startswith(PREFIX):
                given[name.removeprefix(PREFIX)] = layer[key]
    for key, text in os.environ.items():
        if key.startswith(ENVIRONMENT_PREFIX):
            given[key.removeprefix(ENVIRONMENT_PREFIX).lower()] = text
    return given


def _convert_all(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, spec in FIELDS.items():
        try:
            values[name] = spec.convert(given.get(name, spec.default))
        except (TypeError, ValueError) as exc:
            problems.append(f"setting {PREFIX}{name}: {exc}")
            values[name] = spec.default
    return values


def _default_budget(
    given: Mapping[str, Any], values: dict[str, Any], problems: list[str]
) -> Budget:
    settled = {name: values.pop(name) for name in _BUDGET_FIELDS}
    # Only what somebody set: a memory limit alone then takes the warning level along.
    fields = {name: value for name, value in settled.items() if name in given}
    try:
        return Budget().over("settings budgets_*", fields)
    except ConfigurationError as exc:
        problems.extend(exc.problems)
        return Budget()


def _listed(lanes: Any, default: Budget, problems: list[str]) -> tuple[Lane, ...]:
    """Return the lanes on the default budget, from objects or from a mapping of fields."""
    if lanes is None:
        lanes = DEFAULT_LANES
    listed: list[Lane] = []
    entries = lanes.items() if isinstance(lanes, Mapping) else ((lane.name, lane) for lane in lanes)
    for name, entry in entries:
        try:
            lane = entry if isinstance(entry, Lane) else _lane_from(name, entry)
            listed.append(lane.on(default))
        except ConfigurationError as exc:
            problems.extend(exc.problems)
    return tuple(listed)


def _lane_from(name: str, entry: Any) -> Lane:
    if isinstance(entry, int) and not isinstance(entry, bool):
        return Lane(name, entry)
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            f"lane {name!r}: {entry!r} must be its concurrency or a mapping of its fields"
        )
    return Lane(name, **entry)


def _table(listed: tuple[Lane, ...], values: dict[str, Any], problems: list[str]) -> Lanes | None:
    tools, default = values.pop("tools"), values.pop("default_lane")
    global_concurrency = values.pop("global_concurrency")
    try:
        return Lanes(listed, tools=tools, default=default, global_concurrency=global_concurrency)
    except ConfigurationError as exc:
        # A table without the lanes that failed would only repeat what is already said.
        if not problems or listed:
            problems.extend(exc.problems)
        return None


class _Held:
    """What one app's program has given, and the settings once they are read."""

    def __init__(self) -> None:
        self.lanes: Iterable[Lane] | None = None
        self.settings: Settings | None = None


_held: WeakKeyDictionary[Any, _Held] = WeakKeyDictionary()


def declare(app: Any, lanes: Iterable[Lane] | None) -> None:
    """Note the lanes that the program gives *app* itself."""
    held = _held.setdefault(app, _Held())
    held.lanes = None if lanes is None else tuple(lanes)
    held.settings = None


def settings_of(app: Any) -> Settings:
    """Return the settings of *app*, read once; defaults for an app that declares nothing.

    Raises:
        ConfigurationError: Lists everything wrong; raised again at each call.
    """
    held = _held.get(app)
    if held is None:
        held = _held.setdefault(app, _Held())
    if held.settings is None:
        held.settings = Settings.of(app, held.lanes)
    return held.settings


def reread(app: Any) -> None:
    """Read the settings of *app* anew the next time that they are asked for."""
    held = _held.get(app)
    if held is not None:
        held.settings = None
