"""Checks a worker before its first call: refuses to start it, or warns, with the remedy.

Covers: queues, concurrency, autoscale, pool, broker timeouts, memory at the start.
Does not cover: the values of the settings themselves (:mod:`celery_budgets.config.settings`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery_budgets.config.broker_limits import renews, visibility_timeout
from celery_budgets.config.queues import lanes_of_queues
from celery_budgets.config.routing import lane_of
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError, nearest
from celery_budgets.execution.memory import rss as memory
from celery_budgets.model.demands import limit_problems
from celery_budgets.model.lanes import Lane, Lanes
from celery_budgets.model.priority import Broker
from celery_budgets.tasks.strategies import strategy_problems
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.units import format_duration, format_size
from celery_budgets.worker.limits.call_demands import demands_of_lanes, limits_named_by
from celery_budgets.worker.pool.size import pool_name
from celery_budgets.worker.request_classes import request_problems
from celery_budgets.worker.startup.priority_checks import priority_problems
from celery_budgets.worker.startup.refused import WorkerRefused
from celery_budgets.worker.startup.stray_queues import undeclared_problems

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings

__all__ = [
    "capacity", "check_queues", "check_worker", "longest_hard_limit",
    "python_problem", "task_class_problems", "visibility_problem",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: RabbitMQ closes the channel of a message that stays unacknowledged this long, seconds.
RABBITMQ_CONSUMER_TIMEOUT = 1800.0
#: Margin below it, from which on a lane on RabbitMQ is warned about, seconds.
_RABBITMQ_MARGIN = 300.0
_SLOTS_OF_ONE = frozenset({"solo"})


def capacity(lanes: Lanes, consumed: Iterable[Lane]) -> int:
    """Return how many calls a worker of the *consumed* lanes may run at once."""
    return min(sum(lane.concurrency for lane in consumed), lanes.global_concurrency)


def check_queues(settings: Settings, wanted: Iterable[str], declared: Iterable[str]) -> None:
    """Refuse a worker that is to consume an undeclared queue.

    Raises:
        WorkerRefused: Names the declared queues.
    """
    known = {lane.queue for lane in settings.lanes.values()} | set(declared)
    missing = [queue for queue in wanted if queue not in known]
    if missing:
        raise WorkerRefused(
            *(f"-Q {queue}: there is no such queue; {nearest(queue, known)}" for queue in missing)
        )


def check_worker(worker: Any, settings: Settings, autoscale: Any = None) -> list[Lane]:
    """Check a worker that is about to start; return the lanes that it serves.

    Raises:
        WorkerRefused: Lists every reason.
    """
    consumed = lanes_of_queues(settings.lanes, worker.app.amqp.queues.consume_from)
    problems = [
        *_pool_problems(worker),
        *_concurrency_problems(worker, settings, consumed, autoscale),
        *_task_problems(worker.app, settings),
        *_fleet_problems(worker.app, settings),
        *filter(None, [visibility_problem(worker.app, settings.lanes, consumed)]),
        *(_memory_problems(worker, consumed) if settings.memory_guard else ()),
    ]
    if settings.priorities:
        problems += priority_problems(worker.app, consumed)
    if problems:
        raise WorkerRefused(*problems)
    for undeclared in undeclared_problems(worker.app):
        logger.warning("budgets.queue_undeclared: %s", undeclared)
    _warn_of_rabbitmq(worker.app, consumed)
    if (problem := python_problem()) is not None:
        logger.warning("budgets.python_memory: %s", problem)
    return consumed


def _pool_problems(worker: Any) -> Iterator[str]:
    if pool_name(worker.pool_cls) == "eventlet":
        yield (
            "pool eventlet: no limit can be enforced on it; "
            "start the worker with -P prefork, threads, gevent or solo"
        )


def _concurrency_problems(
    worker: Any, settings: Settings, consumed: list[Lane], autoscale: Any
) -> Iterator[str]:
    if not consumed or pool_name(worker.pool_cls) in _SLOTS_OF_ONE:
        return
    most = capacity(settings.lanes, consumed)
    names = ", ".join(lane.name for lane in consumed)
    if autoscale:
        highest = max(int(part or 0) for part in str(autoscale).strip("()[] ").split(","))
        if highest > most:
            yield (
                f"--autoscale {highest} is above the concurrency of {names} ({most}); lower it "
                "to that, or raise the lane's concurrency"
            )
    elif worker.concurrency > most:
        yield (
            f"-c {worker.concurrency} is above the concurrency of {names} ({most}); leave -c "
            "out, or raise the lane's concurrency"
        )
    elif worker.concurrency < most:
        logger.info(
            "budgets.concurrency_lowered lanes=%s concurrency=%s of=%s",
            names, worker.concurrency, most,
        )  # fmt: skip


def _fleet_problems(app: Any, settings: Settings) -> Iterator[str]:
    named = [name for task in app.tasks.values() for name in limits_named_by(task)]
    if named or demands_of_lanes(settings.lanes, settings.fleet_concurrency):
        from celery_budgets.shared_state.lease_store import client_of

        try:
            client_of(app, 1.0, "a limit over the fleet")[0].close()
        except ConfigurationError as exc:
            yield from exc.problems


def _task_problems(app: Any, settings: Settings) -> Iterator[str]:
    for name, task in sorted(app.tasks.items()):
        if isinstance(task, BudgetedTask):
            yield from task_class_problems(task)
            try:
                task.budget_in(lane_of(settings.lanes, name, task))
            except ConfigurationError as exc:
                for problem in exc.problems:
                    yield problem if name in problem else f"task {name!r}: {problem}"


def task_class_problems(task: BudgetedTask) -> Iterator[str]:
    """Yield a problem for each class of *task* by which messages would bypass this package."""
    yield from strategy_problems(type(task))
    yield from request_problems(task)
    yield from limit_problems(task, settings_of(task.app).limits)


def longest_hard_limit(app: Any, lanes: Lanes, chosen: Iterable[Lane]) -> tuple[float, str]:
    """Return the longest hard time limit in the *chosen* lanes, seconds, and its owner."""
    picked = list(chosen)
    limits = [(lane.budget.hard_time_limit, f"lane {lane.name!r}") for lane in picked]
    for name, task in app.tasks.items():
        if isinstance(task, BudgetedTask):
            try:
                lane = task.home()
                budget = task.budget_in(lane)
            except ConfigurationError:
                continue  # the check of tasks reports it
            if lane in picked and budget is not lane.budget:
                limits.append((budget.hard_time_limit, f"task {name!r}"))
    return max(limits, default=(0.0, "no lane"), key=lambda limit: limit[0])


def visibility_problem(app: Any, lanes: Lanes, chosen: Iterable[Lane]) -> str | None:
    """Return the problem if a Redis broker would redeliver running calls, or ``None``."""
    visible = visibility_timeout(app)
    if visible is None or renews(app):
        return None
    longest, whose = longest_hard_limit(app, lanes, chosen)
    if longest < visible:
        return None
    return (
        f"{whose}: hard time limit {format_duration(longest)} is not below the broker's visibility "
        f"timeout ({format_duration(visible)}), so a running call would be handed out a second "
        f"time; set broker_transport_options['visibility_timeout'] above {longest:g}, or lower "
        "the timeout"
    )


def _memory_problems(worker: Any, consumed: list[Lane]) -> Iterator[str]:
    rss = memory.rss()
    for lane in consumed:
        if rss > lane.budget.max_rss:
            yield (
                f"lane {lane.name!r}: max_rss {format_size(lane.budget.max_rss)} is below what "
                f"the worker takes before its first call ({format_size(rss)}); raise max_rss, or "
                "import less at its start"
            )


def python_problem(version: tuple[int, ...] = sys.version_info[:3]) -> str | None:
    """Return the problem of a Python whose garbage collector keeps memory long, or ``None``."""
    if not (3, 14, 0) <= version <= (3, 14, 4):
        return None
    return (
        f"Python {'.'.join(map(str, version))}: the incremental garbage collector of 3.14.0 to "
        "3.14.4 multiplies the memory of processes, and calls meet their memory limits early; "
        "take 3.14.5 or later, or 3.13"
    )


def _warn_of_rabbitmq(app: Any, consumed: list[Lane]) -> None:
    if Broker.at(app.conf.broker_read_url) is not Broker.RABBITMQ:
        return
    for lane in consumed:
        hard = lane.budget.hard_time_limit
        if lane.idempotent and hard > RABBITMQ_CONSUMER_TIMEOUT - _RABBITMQ_MARGIN:
            logger.warning(
                "budgets.consumer_timeout lane=%s hard_time_limit=%s consumer_timeout=%s: "
                "RabbitMQ (from 4.3 only for quorum queues) closes the channel of a call that runs "
                "longer; raise its "
                "consumer_timeout above the hard limit",
                lane.name, format_duration(hard), format_duration(RABBITMQ_CONSUMER_TIMEOUT),
            )  # fmt: skip
