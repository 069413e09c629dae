"""``Budgets(app)``: the entry point, and the only place that changes a Celery app.

It declares the queues of the lanes, routes tasks to them, adds bootsteps to workers and starts
the instrumentation. See also: :mod:`celery_budgets.worker.bootsteps`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack
from uuid import uuid4

from celery import current_app, signals

from celery_budgets.config.amqp import add_lanes, add_router
from celery_budgets.config.queues import queue_names, real_names
from celery_budgets.config.settings import Settings, declare, reread, settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.execution.process_exit import FLUSH_SECONDS
from celery_budgets.model.budget import BudgetFields
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.headers import HEADER_DEADLINE
from celery_budgets.model.lanes import Lane
from celery_budgets.model.limit import Limit
from celery_budgets.sending.options import stamp
from celery_budgets.sending.questions import Questions
from celery_budgets.sending.remote_control import Inspection
from celery_budgets.sending.results import group_result
from celery_budgets.sending.scope import Scope
from celery_budgets.tasks.mapped import charge_mapped
from celery_budgets.telemetry import spans
from celery_budgets.web.mounted import Mounted

if TYPE_CHECKING:
    from celery_budgets.batch.batch import Batch, BatchOptions
    from celery_budgets.blocks.block import Block
    from celery_budgets.telemetry.statistics import Statistics

__all__ = ["Budgets"]

logger = logging.getLogger(__name__)


class Budgets(Questions, Mounted):
    """Adds lanes and budgets to a Celery app.

    Args:
        app: The Celery app. Its configuration may be loaded later.
        lanes: The lanes; by default those of the settings, else the five default lanes.
        limits: The limits over the fleet; by default those of the settings.

    Raises:
        ConfigurationError: Lists every problem, if the app is configured already; otherwise
            the first use raises it, and a worker refuses to start.

    Example:
        >>> app = Celery("tools", broker="redis://localhost:6379/0")
        >>> budgets = Budgets(app)
    """

    def __init__(
        self,
        app: Any,
        *,
        lanes: Iterable[Lane] | None = None,
        limits: Iterable[Limit] | None = None,
    ) -> None:
        #: The Celery app.
        self.app = getattr(app, "_get_current_object", lambda: app)()
        super().__init__(Inspection(self.app))
        self._lanes = None if lanes is None else tuple(lanes)
        self._limits = None if limits is None else tuple(limits)
        declare(self.app, self._lanes, self._limits)
        # The app keeps this object and is freed with it: signals hold only a weak reference.
        self.app.__dict__[_BUDGETS] = self
        self.app.steps["worker"].add("celery_budgets.worker.bootsteps.worker_step:BudgetsStep")
        self.app.steps["worker"].add("celery_budgets.worker.bootsteps.control_step:ControlStep")
        for step in ("Lanes", "Gate", "Renewal", "Backlog"):
            path = f"celery_budgets.worker.bootsteps.{step.lower()}_step:{step}Step"
            self.app.steps["consumer"].add(path)
        self.app.GroupResult = group_result(self.app)
        self.app.on_after_configure.connect(self._on_configured)
        signals.celeryd_init.connect(self._on_worker_init)
        signals.before_task_publish.connect(stamp, weak=False, dispatch_uid=stamp.__name__)
        signals.worker_process_init.connect(self._on_pool_process)
        signals.worker_process_shutdown.connect(_flush, weak=False, dispatch_uid="flush-budgets")
        if self.app.configured:
            self._configure()
        charge_mapped(self.app)

    @classmethod
    def of(cls, app: Any) -> Budgets:
        """Return the budgets of *app*; create them with the default lanes if there are none."""
        app = getattr(app, "_get_current_object", lambda: app)()
        return app.__dict__.get(_BUDGETS) or cls(app)

    @property
    def settings(self) -> Settings:
        """The settings, read at the first use.

        Raises:
            ConfigurationError: Lists every problem.
        """
        return settings_of(self.app)

    def _on_configured(self, **_: Any) -> None:
        """Apply the configuration, also each time that it is reloaded."""
        reread(self.app)
        try:
            self._configure()
        except ConfigurationError as exc:
            # Celery only logs errors of signal receivers; the first use raises this one again.
            logger.debug("budgets.misconfigured: %s", exc)

    def _configure(self) -> None:
        conf = self.app.conf
        if self._lanes is not None:
            # A spawned pool process gets a copy of the app, of which only the configuration.
            conf.budgets_lanes = self._lanes
        if self._limits is not None:
            conf.budgets_limits = self._limits
        add_router(self.app)
        settings = self.settings
        add_lanes(self.app, settings)
        for name, value in (
            ("task_create_missing_queues", False),
            ("task_default_queue", settings.lanes.default.queue),
            ("worker_prefetch_multiplier", 1),
        ):
            if not conf.value_set_for(name):
                conf[name] = value
        if settings.tracing:
            spans.instrument(settings.span_sample_rate)

    def _on_worker_init(self, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
        """Set the concurrency of a worker to that of its lanes, before the worker reads it."""
        if instance.app is not self.app:
            return
        from celery_budgets.config.queues import lanes_of_queues
        from celery_budgets.worker.startup.checks import capacity, check_queues

        try:
            settings = self.settings
            # Not app.amqp.queues, which is cached: another receiver may still declare queues.
            queues = instance.app.amqp.Queues(conf.task_queues)
            wanted = real_names(queue_names(options.get("queues")), queues) or list(queues)
            check_queues(settings, wanted, queues)
        except ConfigurationError as exc:
            # SystemExit is the only exception that Celery's signals do not swallow.
            raise SystemExit(f"Error: {exc}") from None
        # Connected again, to run last: the program's own receiver may set a tracer provider.
        signals.worker_process_init.disconnect(self._on_pool_process)
        signals.worker_process_init.connect(self._on_pool_process)
        excluded = real_names(queue_names(options.get("exclude_queues")), queues)
        lanes = lanes_of_queues(settings.lanes, set(wanted).difference(excluded))
        if lanes and not options.get("concurrency") and not options.get("autoscale"):
            conf.worker_concurrency = capacity(settings.lanes, lanes)

    def _on_pool_process(self, **_: Any) -> None:
        """Prepare a pool process: instrumentation not inherited, stop signals, and recycling."""
        # A spawned process has a copy of the app, which is the current app there.
        app = current_app._get_current_object()
        if app is not self.app and app.main != self.app.main:
            return
        charge_mapped(app)
        settings = settings_of(app)
        if settings.tracing:
            spans.instrument(settings.span_sample_rate)
        from celery_budgets.execution import slow_start
        from celery_budgets.execution.limits.forks import end_by_default
        from celery_budgets.execution.limits.stop_signals import leave_to_worker
        from celery_budgets.execution.memory import recycling
        from celery_budgets.execution.stacks import writer

        slow_start.warn_of_slow_start(app)
        leave_to_worker()
        end_by_default()
        writer.install(settings.stacks, in_pool_process=True)
        if settings.memory_guard:
            recycling.install(app)

    def call(
        self,
        lane: str,
        *,
        task_id: str | None = None,
        tool_name: str | None = None,
        input_size: int | str | None = None,
        wait: float | str | None = 0.0,
        limits: Iterable[str] = (),
        limit_keys: Mapping[str, Any] | None = None,
        **fields: Unpack[BudgetFields],
    ) -> Block:
        """Run any code as one call under the budget of *lane*: ``with``, ``async with``, or ``@``.

        The call takes one of the lane's slots of this process. Its limits are enforced as far as
        a thread or a coroutine can be interrupted, and its span, metrics and logs are those of a
        task. It needs no worker and no broker. In a task or another call it gets the time left.

        Args:
            lane: Name of the lane.
            task_id: Id of the call; a new one by default.
            tool_name: Name of the code; by default that of the function, or of the lane.
            input_size: Size of its input, bytes, for its span.
            wait: Longest wait for a slot, and for limits, seconds; ``None``: without limit.
            limits: Names of limits over the fleet that it is held to.
            limit_keys: The key by limit, for those that have keys.
            **fields: Fields of a budget that override the lane's, such as ``timeout`` (seconds).

        Raises:
            ConfigurationError: A value is invalid; or, at its start, the lane does not exist.

        Example:
            >>> with budgets.call("critic", timeout=600, wait=5) as call:
            ...     review(path, call.remaining())
        """
        from celery_budgets.blocks.block import Block
        from celery_budgets.blocks.limited_slots import Asked

        return Block(
            self.app, lane, task_id=task_id, tool_name=tool_name, input_size=input_size,
            wait=wait, limits=fields, asked=Asked(tuple(limits), dict(limit_keys or {})),
        )  # fmt: skip

    def deadline(self, seconds: float | str) -> dict[str, list[float]]:
        """Return message headers with a deadline *seconds* from now, for ``send_task``.

        Example:
            >>> app.send_task("fs_read", ("tools.py",), headers=budgets.deadline(5.0))
        """
        factor = self.settings.budget.escalation_factor
        return {HEADER_DEADLINE: list(Deadline.after(seconds, factor))}

    def local_statistics(self) -> Statistics:
        """Return the statistics of the calls made by :meth:`call` in this process.

        :meth:`statistics` includes those of workers without pool processes (threads, gevent,
        solo). Those of web processes, scripts and pool processes are available only here.
        """
        from celery_budgets.blocks.ledger import ledger_of

        return ledger_of(self.app).snapshot()

    def scope(
        self,
        name: str | None = None,
        *,
        max_calls: int | None = None,
        timeout: float | str | None = None,
    ) -> Scope:
        """Return a request scope, which groups all calls sent in its ``with`` block by a name.

        For arguments and errors see :class:`celery_budgets.sending.scope.Scope`.

        Example:
            >>> with budgets.scope("req-42", max_calls=50, timeout=120) as scope:
            ...     result = fs_read.delay("tools.py")
            >>> scope.statistics().total.succeeded
            1
        """
        return Scope(self.app, self._inspection, name, max_calls=max_calls, timeout=timeout)

    def batch(self, signatures: Iterable[Any], **options: Unpack[BatchOptions]) -> Batch:
        """Return a batch of calls: iterate over it to send them and to read their results.

        For arguments and errors see :class:`celery_budgets.batch.batch.Batch`.

        Example:
            >>> for item in budgets.batch((fs_read.s(path) for path in paths), max_in_flight=16):
            ...     print(item.index, item.value if item.ok else item.error)
        """
        from celery_budgets.batch.batch import Batch

        return Batch(self.scope(f"batch-{uuid4().hex[:12]}"), signatures, **options)


#: Attribute of an app that holds its ``Budgets``.
_BUDGETS = "_celery_budgets_of_app"


def _flush(**_: Any) -> None:
    """Export buffered spans when a pool process ends: it exits by ``os._exit``."""
    spans.flush(FLUSH_SECONDS)
