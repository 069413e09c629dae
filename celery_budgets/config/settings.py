"""Settings: the only reader of the ``budgets_*`` keys of an app's configuration.

They may be set in ``app.conf``, in a configuration module, in a namespaced one such as Django's
(``CELERY_BUDGETS_TIMEOUT``), or in the environment under that same name, which takes precedence.

See also: :data:`celery_budgets.config.setting_fields.FIELDS`, the table of settings, from which
``docs/reference/settings.md`` is generated.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_budgets.config.setting_fields import FIELDS
from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.model.budget import Budget
from celery_budgets.model.lanes import DEFAULT_LANES, Lane, Lanes
from celery_budgets.model.limit import LIMIT_FIELDS, Limit
from celery_budgets.model.per_process import OncePerProcess

__all__ = ["ENVIRONMENT_PREFIX", "PREFIX", "Settings", "declare", "reread", "settings_of"]

PREFIX = "budgets_"
ENVIRONMENT_PREFIX = "CELERY_BUDGETS_"

#: Variables that Kubernetes sets for a Service, without the prefix of its name.
_OF_A_SERVICE = re.compile(r"service_(host|port.*)|port(_.*)?")
#: Settings that are fields of the default budget.
_BUDGET_FIELDS = (
    "timeout", "escalation_factor", "max_timeout", "max_rss", "rss_warning", "children",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one app, converted and validated."""

    lanes: Lanes
    #: The limits over the fleet, by name.
    limits: Mapping[str, Limit]
    fleet_concurrency: int | None
    #: The default budget of lanes.
    budget: Budget
    max_worker_rss: int | None
    memory_guard: bool
    rejection: str
    max_pause: float
    max_abandoned_threads: int
    priorities: bool
    priority_aging: float
    #: Not in the repr: it may contain a password.
    idempotency_url: str | None = field(repr=False)
    idempotency_retention: float
    progress_retention: float
    idempotency_lease: float
    stop_grace: float | None
    drain_cutoff: float
    redis_transport: str
    backlog: bool
    tracing: bool
    span_sample_rate: float
    span_name: str | None
    stacks: bool | str
    json_logs: bool
    metrics_host: str
    metrics_port: int | None

    @classmethod
    def of(
        cls, app: Any, lanes: Iterable[Lane] | None = None, limits: Iterable[Limit] | None = None
    ) -> Settings:
        """Return the settings of *app*, read from its configuration and the environment.

        Args:
            app: The Celery app; its configuration is read.
            lanes: The lanes, where the program gives them itself.
            limits: The limits, where the program gives them itself.

        Raises:
            ConfigurationError: Lists every problem, not only the first.
        """
        # Celery loads the configuration when a key is read; before, it has no keys to list.
        app.conf.get("timezone")
        # The environment takes precedence over the program, as with Celery's own variables.
        given = _given(app.conf)
        if limits is not None and f"{ENVIRONMENT_PREFIX}LIMITS" not in os.environ:
            given["limits"] = tuple(limits)
        named_outside = f"{ENVIRONMENT_PREFIX}LANES" in os.environ
        return cls.from_mapping(given, None if named_outside else lanes)

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, Any], lanes: Iterable[Lane] | None = None
    ) -> Settings:
        """Return the settings in *given*, whose keys are without the prefix."""
        problems = [
            f"setting {PREFIX}{name} is not known; {nearest(PREFIX + name, _known())}"
            for name in given
            if name not in FIELDS
        ]
        values = _convert_all(given, problems)
        budget = _default_budget(given, values, problems)
        listed = _listed(lanes if lanes is not None else values.pop("lanes"), budget, problems)
        values.pop("lanes", None)
        limits = _limits_from(values.pop("limits"), problems)
        table = _table(listed, values, problems)
        ConfigurationError.raise_if(problems)
        assert table is not None
        return cls(lanes=table, limits=limits, budget=budget, **values)


def _known() -> list[str]:
    return [PREFIX + name for name in FIELDS]


def _given(conf: Any) -> dict[str, Any]:
    """Return every ``budgets_*`` key that the user has set, by its name without the prefix."""
    # The last map holds Celery's defaults; a namespace is the prefix of the view.
    given: dict[str, Any] = {}
    namespace = (conf.prefix or "").lower()
    for layer in reversed(conf.maps[:-1]):
        for key in list(layer.keys()):
            name = str(key).lower().removeprefix(namespace)
            if name.startswith(PREFIX):
                given[name.removeprefix(PREFIX)] = layer[key]
    for key, text in os.environ.items():
        if not key.startswith(ENVIRONMENT_PREFIX):
            continue
        name = key.removeprefix(ENVIRONMENT_PREFIX).lower()
        if _OF_A_SERVICE.fullmatch(name):
            continue  # set by Kubernetes for a Service that is named celery-budgets
        given[name] = text
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
    # Only those that the user has set: a memory limit alone then scales the warning level.
    fields = {name: value for name, value in settled.items() if name in given}
    try:
        return Budget().over("settings budgets_*", fields)
    except ConfigurationError as exc:
        problems.extend(exc.problems)
        return Budget()


def _listed(lanes: Any, default: Budget, problems: list[str]) -> tuple[Lane, ...]:
    """Return the lanes, from objects or from a mapping of fields, on the default budget."""
    if lanes is None:
        lanes = DEFAULT_LANES
    listed: list[Lane] = []
    entries = lanes.items() if isinstance(lanes, Mapping) else ((None, lane) for lane in lanes)
    for name, entry in entries:
        try:
            lane = entry if isinstance(entry, Lane) else _lane_from(name, entry, default)
            listed.append(lane.on(default))
        except ConfigurationError as exc:
            problems.extend(exc.problems)
    return tuple(listed)


def _lane_from(name: str | None, entry: Any, default: Budget) -> Lane:
    if name is None:
        raise ConfigurationError(f"lanes: {entry!r} is not a Lane; write Lane(name, concurrency)")
    if isinstance(entry, int) and not isinstance(entry, bool):
        return Lane(name, entry)
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            f"lane {name!r}: {entry!r} must be its concurrency or a mapping of its fields"
        )
    misplaced = [key for key in entry if not isinstance(key, str) or key in ("self", "name")]
    if misplaced:
        raise ConfigurationError(
            f"lane {name!r}: {misplaced[0]!r} is not a field; the key above is the lane's name"
        )
    # With the default budget at once: the fields may be valid only together with it.
    return Lane(name, **{"budget": default, **entry})


def _limits_from(limits: Any, problems: list[str]) -> dict[str, Limit]:
    """Return the limits by name, from objects or from a mapping of fields."""
    found: dict[str, Limit] = {}
    entries = limits.items() if isinstance(limits, Mapping) else ((None, one) for one in limits)
    for name, entry in entries:
        try:
            limit = entry if isinstance(entry, Limit) else _limit_from(name, entry)
            if limit.name.startswith("@"):
                problems.append(f"limit {limit.name!r}: a name with @ is reserved; rename it")
            if limit.name in found:
                problems.append(f"limit {limit.name!r} is named twice; rename one")
            found[limit.name] = limit
        except ConfigurationError as exc:
            problems.extend(exc.problems)
    return found


def _limit_from(name: Any, entry: Any) -> Limit:
    if isinstance(entry, int) and not isinstance(entry, bool):
        return Limit(name, entry)
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            f"limit {name!r}: {entry!r} must be its concurrency or a mapping of its fields"
        )
    unknown = [key for key in entry if key not in LIMIT_FIELDS]
    if unknown:
        raise ConfigurationError(
            f"limit {name!r}: {unknown[0]!r} is no field; {nearest(unknown[0], LIMIT_FIELDS)}"
        )
    return Limit(name, **entry)


def _table(listed: tuple[Lane, ...], values: dict[str, Any], problems: list[str]) -> Lanes | None:
    tools, default = values.pop("tools"), values.pop("default_lane")
    global_concurrency = values.pop("global_concurrency")
    try:
        return Lanes(listed, tools=tools, default=default, global_concurrency=global_concurrency)
    except ConfigurationError as exc:
        # A table without the invalid lanes would only repeat problems that are listed.
        if not problems or listed:
            problems.extend(exc.problems)
        return None


class _Held:
    """The lanes that the program gave to one app, and its settings once they are read."""

    def __init__(self) -> None:
        self.lanes: Iterable[Lane] | None = None
        self.limits: Iterable[Limit] | None = None
        self.settings: Settings | None = None
        #: Counts invalidations: settings that were read before one are not cached after it.
        self.version = 0

    def put_away(self) -> None:
        self.version += 1
        self.settings = None


#: Attribute of an app that holds its :class:`_Held`; read at every call.
_HELD = "_celery_budgets"
# Reentrant: garbage collection inside it may close a generator that ends a block.
_lock = OncePerProcess(threading.RLock)


def _held_for(app: Any) -> _Held:
    held: _Held | None = app.__dict__.get(_HELD)
    return held if held is not None else app.__dict__.setdefault(_HELD, _Held())


def declare(app: Any, lanes: Iterable[Lane] | None, limits: Iterable[Limit] | None = None) -> None:
    """Remember the lanes and the limits that the program gives to *app* itself."""
    held, given = _held_for(app), None if lanes is None else tuple(lanes)
    with _lock():
        held.lanes, held.limits = given, None if limits is None else tuple(limits)
        held.put_away()


def settings_of(app: Any) -> Settings:
    """Return the settings of *app*, read once; the defaults if it has none.

    Raises:
        ConfigurationError: Lists every problem; raised again at each call.
    """
    held = _held_for(app)
    settings = held.settings
    while settings is None:
        version = held.version
        # Not under the lock: it may import a module, which may wait for another thread.
        read = Settings.of(app, held.lanes, held.limits)
        with _lock():
            if held.settings is None and held.version == version:
                held.settings = read
            settings = held.settings
    return settings


def reread(app: Any) -> None:
    """Discard the settings of *app*, so that the next access reads them again."""
    with _lock():
        _held_for(app).put_away()
