"""``Budgets(app)``: the one place with side effects on a Celery app.

It declares the queues of the lanes, routes tasks to them, adds the bootstep to workers and
starts the instrumentation. See also: :mod:`celery_budgets.worker.steps` for what a worker does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from time import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery import current_app, signals
from kombu.entity import Exchange, Queue

from celery_budgets.asking import Asking
from celery_budgets.errors import ConfigurationError
from celery_budgets.lanes import Lane
from celery_budgets.routing import LaneRouter
from celery_budgets.settings import Settings, declare, reread, settings_of
from celery_budgets.telemetry import spans
from celery_budgets.telemetry.names import HEADER_DUE_AT

if TYPE_CHECKING:
    from celery_budgets.telemetry.snapshots import Concurrency, Memory
    from celery_budgets.telemetry.statistics import Statistics

__all__ = ["Budgets"]

logger = logging.getLogger(__name__)


class Budgets:
    """Gives the calls of *app* lanes and budgets.

    Args:
        app: The Celery app. Its configuration may still be loaded after this.
        lanes: The lanes; by default those of the settings, and else the five default lanes.

    Raises:
        ConfigurationError: Lists everything wrong, where the app is configured already;
            otherwise the first use raises it, and a worker refuses to start.

    Example:
        >>> app = Celery("tools", broker="redis://localhost:6379/0")
        >>> budgets = Budgets(app)
    """

    def __init__(self, app: Any, *, lanes: Iterable[Lane] | None = None) -> None:
        #: The Celery app.
        self.app = getattr(app, "_get_current_object", lambda: app)()
        self._asking = Asking(self.app)
        self._lanes = None if lanes is None else tuple(lanes)
        declare(self.app, self._lanes)
        _budgets[self.app] = self
        self.app.steps["worker"].add("celery_budgets.worker.steps:BudgetsStep")
        self.app.steps["consumer"].add("celery_budgets.worker.gate_step:GateStep")
        self.app.on_after_configure.connect(self._on_configured, weak=False)
        signals.celeryd_init.connect(self._on_worker_init, weak=False)
        signals.before_task_publish.connect(_stamp, weak=False, dispatch_uid=_stamp.__name__)
        signals.worker_process_init.connect(self._on_pool_process, weak=False)
        signals.worker_process_shutdown.connect(
            _flush, weak=False, dispatch_uid="celery_budgets.flush"
        )
        if self.app.configured:
            self._configure()

    @classmethod
    def of(cls, app: Any) -> Budgets:
        """Return the budgets of *app*, made with the default lanes where there are none."""
        app = getattr(app, "_get_current_object", lambda: app)()
        return _budgets.get(app) or cls(app)

    @property
    def settings(self) -> Settings:
        """The settings, read at the first use.

        Raises:
            ConfigurationError: Lists everything wrong.
        """
        return settings_of(self.app)

    def _on_configured(self, **_: Any) -> None:
        """Apply the configuration, also when it is loaded anew."""
        reread(self.app)
        try:
            self._configure()
        except ConfigurationError as exc:
            # Celery would log a signal's error and go on; the first use raises it instead.
            logger.debug("budgets.misconfigured: %s", exc)

    def _configure(self) -> None:
        conf = self.app.conf
        if not any(isinstance(route, LaneRouter) for route in _as_tuple(conf.task_routes)):
            conf.task_routes = (*_as_tuple(conf.task_routes), LaneRouter(self.app))
        if self._lanes is not None:
            # A spawned pool process gets a copy of the app, with its configuration and no more.
            conf.budgets_lanes = self._lanes
        settings = self.settings
        declared = _queues(conf.task_queues)
        for lane in settings.lanes.values():
            # As Celery would make it, so that a plain Celery producer agrees about it.
            declared.setdefault(
                lane.queue, Queue(lane.queue, Exchange(lane.queue), routing_key=lane.queue)
            )
        conf.task_queues = tuple(declared.values())
        conf.task_create_missing_queues = False
        if not conf.value_set_for("task_default_queue"):
            conf.task_default_queue = settings.lanes.default.queue
        if not conf.value_set_for("worker_prefetch_multiplier"):
            conf.worker_prefetch_multiplier = 1
        if settings.tracing:
            spans.instrument(settings.span_sample_rate)

    def _on_worker_init(self, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
        """Give a worker its lanes' concurrency, before it has looked at it."""
        if instance.app is not self.app:
            return
        from celery_budgets.worker import control  # noqa: F401  registers the commands
        from celery_budgets.worker.checks import capacity, check_queues, lanes_of_queues

        try:
            settings = self.settings
            declared = [queue.name for queue in conf.task_queues or ()]
            wanted = _names(options.get("queues")) or declared
            check_queues(settings, wanted, declared)
        except ConfigurationError as exc:
            # The only exception that Celery's signals let through.
            raise SystemExit(f"Error: {exc}") from None
        # Again, and so last: a provider may be set by the program's own receiver.
        signals.worker_process_init.disconnect(self._on_pool_process)
        signals.worker_process_init.connect(self._on_pool_process, weak=False)
        wanted = [queue for queue in wanted if queue not in _names(options.get("exclude_queues"))]
        lanes = lanes_of_queues(settings.lanes, wanted)
        if lanes and not options.get("concurrency") and not options.get("autoscale"):
            conf.worker_concurrency = capacity(settings.lanes, lanes)

    def _on_pool_process(self, **_: Any) -> None:
        """Prepare a pool process: instrumentation that it did not inherit, and recycling."""
        # A spawned process works for a copy of the app, which is the current one there.
        app = current_app._get_current_object()
        if app is not self.app and app.main != self.app.main:
            return
        settings = settings_of(app)
        if settings.tracing:
            spans.instrument(settings.span_sample_rate)
        if settings.memory_guard:
            from celery_budgets.process import recycle

            recycle.install(app)

    def statistics(self, timeout: float = 1.0) -> Statistics:
        """Return what the calls of all workers added up to since each was started.

        Args:
            timeout: How long workers may take to answer, seconds.

        Returns:
            Merged statistics; ``silent`` names workers that did not answer.
        """
        from celery_budgets.telemetry.statistics import Statistics

        answers, silent = self._asking.ask(timeout)
        merged = Statistics(silent)
        for answer in answers.values():
            merged.merge(Statistics.from_json(answer.get("statistics", ())))
        return merged

    def concurrency(self, timeout: float = 1.0) -> Concurrency:
        """Return the slots of all workers as they are now: active, limit and waiting per lane.

        Args:
            timeout: How long workers may take to answer, seconds.
        """
        from celery_budgets.telemetry.snapshots import Concurrency

        return Concurrency.of(*self._asking.ask(timeout))

    def memory(self, timeout: float = 1.0) -> Memory:
        """Return the memory of all workers as it is now, bytes, with its levels and gates.

        Args:
            timeout: How long workers may take to answer, seconds.
        """
        from celery_budgets.telemetry.snapshots import Memory

        return Memory.of(*self._asking.ask(timeout))


_budgets: WeakKeyDictionary[Any, Budgets] = WeakKeyDictionary()


def _queues(declared: Any) -> dict[str, Queue]:
    """Return the queues that the app declares already, by name."""
    if not declared:
        return {}
    if isinstance(declared, dict):
        return {
            name: queue if isinstance(queue, Queue) else Queue.from_dict(name, **queue)
            for name, queue in declared.items()
        }
    return {queue.name: queue for queue in declared}


def _as_tuple(routes: Any) -> tuple[Any, ...]:
    if routes is None:
        return ()
    return tuple(routes) if isinstance(routes, list | tuple) else (routes,)


def _names(queues: Any) -> list[str]:
    """Return the queue names of a ``-Q`` or ``-X`` option."""
    if isinstance(queues, str):
        queues = queues.split(",")
    return [str(queue).strip() for queue in queues or ()]


def _stamp(headers: Any = None, **_: Any) -> None:
    """Note in a message from when on it waits."""
    if headers is None:
        return
    now, eta = time(), headers.get("eta")
    headers[HEADER_DUE_AT] = max(now, datetime.fromisoformat(eta).timestamp()) if eta else now


def _flush(**_: Any) -> None:
    """Send the spans that a pool process holds when it ends: it leaves by os._exit."""
    from celery_budgets.process.interrupt import FLUSH_SECONDS

    spans.flush(FLUSH_SECONDS)
