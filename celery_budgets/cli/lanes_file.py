"""Reads ``lanes.toml``: how ``celery lanes up`` runs the workers of each lane.

    [defaults]
    options = ["-E"]

    [lanes.critic]
    concurrency = 2
    pool = "threads"
    replicas = 2
    environment = { OMP_NUM_THREADS = "1" }

All of it is checked before anything starts. Runs in the supervisor.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.model.lanes import Lanes

__all__ = ["NAME", "WorkerPlan", "names_of", "read_plans"]

#: Its name, where none is given.
NAME = "lanes.toml"
POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
MOST_REPLICAS = 100


@dataclass(frozen=True)
class WorkerPlan:
    """How to run the workers of a lane."""

    #: Calls at once in each worker; ``None``: the lane's concurrency.
    concurrency: int | None = None
    pool: str | None = None
    #: Workers of the lane.
    replicas: int = 1
    #: Variables over those of the supervisor.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Further options of ``celery worker``.
    options: tuple[str, ...] = ()


def read_plans(path: Path, lanes: Lanes) -> dict[str, WorkerPlan]:
    """Return the plan of each of *lanes*, by its name.

    Raises:
        ConfigurationError: The file cannot be read, or has something wrong; all of it is listed.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path}: {exc}") from exc
    problems: list[str] = []
    for name in tables.keys() - {"defaults", "lanes"}:
        problems.append(f"[{name}]: not known; a file has [defaults] and one [lanes.NAME] each")
    own = _table("lanes", tables.get("lanes", {}), problems)
    for name in own.keys() - lanes.keys():
        problems.append(f"[lanes.{name}]: there is no such lane; {nearest(name, lanes)}")
    defaults = _plan("defaults", tables.get("defaults", {}), WorkerPlan(), None, problems)
    plans = {
        name: _plan(f"lanes.{name}", own.get(name, {}), defaults, lane.concurrency, problems)
        for name, lane in lanes.items()
    }
    ConfigurationError.raise_if(f"{path}: {problem}" for problem in problems)
    return plans


def _table(where: str, value: Any, problems: list[str]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    problems.append(f"[{where}]: {value!r} must be a table")
    return {}


def _plan(
    where: str, value: Any, base: WorkerPlan, most: int | None, problems: list[str]
) -> WorkerPlan:
    """Return *base* with what the table *where* says."""
    table = _table(where, value, problems)
    for key in table.keys() - _CHECKS.keys():
        problems.append(f"[{where}]: {key!r} is not known; {nearest(key, _CHECKS)}")
    changes: dict[str, Any] = {}
    for key in table.keys() & _CHECKS.keys():
        try:
            changes[key] = _CHECKS[key](table[key])
        except ValueError as exc:
            problems.append(f"[{where}]: {key} = {table[key]!r}: {exc}")
    if "environment" in changes:
        changes["environment"] = {**base.environment, **changes["environment"]}
    if "options" in changes:
        changes["options"] = (*base.options, *changes["options"])
    plan = replace(base, **changes)
    if most is not None and plan.concurrency is not None and plan.concurrency > most:
        problems.append(
            f"[{where}]: concurrency {plan.concurrency} is above that of the lane ({most}); "
            "raise the lane's, or run more replicas"
        )
    return plan


def _whole(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"must be a whole number from 1 to {most}")
    return value


def _pool(value: Any) -> str:
    if value not in POOLS:
        raise ValueError(f"must be one of {', '.join(POOLS)}")
    return str(value)


def _environment(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
    if not all(name and isinstance(text, str) for name, text in pairs):
        raise ValueError("must be a table of names and texts")
    return dict(value)


def _options(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise ValueError('must be a list of texts, such as ["-l", "WARNING"]')
    return tuple(value)


_CHECKS = {
    "concurrency": lambda value: _whole(value, 10_000),
    "pool": _pool,
    "replicas": lambda value: _whole(value, MOST_REPLICAS),
    "environment": _environment,
    "options": _options,
}


def names_of(lane: str, plan: WorkerPlan) -> Iterator[str]:
    """Yield the names of the workers of *lane*: its own, then with a number each."""
    yield lane
    for number in range(2, plan.replicas + 1):
        yield f"{lane}-{number}"
