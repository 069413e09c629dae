"""Extends ``app.amqp``, so that the lanes are always among the queues and routes of an app.

Celery builds both from the configuration when the first message is sent or a worker starts. The
lanes are added at that point, not only to the configuration: so queues and routes that a program
assigns after ``Budgets(app)`` are added to the lanes instead of replacing them.

Runs in the process that sends, and in the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP

from celery_budgets.config.queues import as_tuple, lane_queues
from celery_budgets.config.routing import LaneRouter
from celery_budgets.config.settings import settings_of
from celery_budgets.model.budget import checked_limit
from celery_budgets.model.deadline import Deadline
from celery_budgets.model.headers import HEADER_DEADLINE

if TYPE_CHECKING:
    from celery_budgets.config.settings import Settings

__all__ = ["LanesAMQP", "add_lanes", "add_router"]

#: Attributes that Celery derives from the configuration and caches.
_KEPT = ("queues", "router", "default_queue", "create_task_message", "send_task_message")

_LIMITS = ("time_limit", "soft_time_limit")


class LanesAMQP(AMQP):
    """Celery's ``AMQP``, with the queues and the router of the lanes added last."""

    #: Celery's own attribute: the prepared routes.
    _rtable: Any = None

    def flush_routes(self) -> None:
        """Prepare the routes, as AMQP.flush_routes does, with the lane router last."""
        super().flush_routes()
        if not any(isinstance(route, LaneRouter) for route in self._rtable):
            self._rtable = [*self._rtable, LaneRouter(self.app)]

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  Celery's name
        """Return the table of *queues*, as AMQP.Queues does, with those of the lanes added."""
        ours = lane_queues(self.app, settings_of(self.app), queues)
        return super().Queues(ours, *args, **kwargs)

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """Return a message, as AMQP.as_task_v2 does.

        Differs: accepts ``deadline=`` of ``send_task``, with the escalation factor of the app, and
        time limits as text, for a task with a budget.

        Raises:
            ValueError: One of them is invalid.
        """
        message = super().as_task_v2(*args, **options)
        task = self.app._tasks.get(message.headers["task"])
        if hasattr(task, "budget_in"):
            _check_limits(message.headers)
        seconds = options.get("deadline")
        if seconds is not None:
            factor = settings_of(self.app).budget.escalation_factor
            message.headers[HEADER_DEADLINE] = list(Deadline.after(seconds, factor))
        return message

    def _create_task_sender(self) -> Callable[..., Any]:
        """Return what sends a message, as AMQP._create_task_sender does.

        Differs: checks the time limits of a task that is not registered here, and accepts them
        as text, where the message goes to the queue of a lane.
        """
        send: Callable[..., Any] = super()._create_task_sender()

        def send_task_message(
            producer: Any, name: str, message: Any, exchange: Any = None, routing_key: Any = None,
            queue: Any = None, **options: Any,
        ) -> Any:  # fmt: skip
            if name not in self.app._tasks:
                to = self.default_queue if queue is None and exchange is None else queue
                if settings_of(self.app).lanes.of_queue(getattr(to, "name", to)) is not None:
                    _check_limits(message.headers)
            return send(
                producer, name, message, exchange=exchange, routing_key=routing_key, queue=queue,
                **options,
            )  # fmt: skip

        return send_task_message


def _check_limits(headers: dict[str, Any]) -> None:
    """Turn the time limits of a message into seconds.

    Raises:
        ValueError: One of them is invalid.
    """
    headers["timelimit"] = [
        None if value is None else checked_limit(name, value)
        for name, value in zip(_LIMITS, headers["timelimit"], strict=True)
    ]


def add_router(app: Any) -> None:
    """Append the lane router to the routes of the configuration.

    Called before the settings are read: if these are invalid, the router raises to the sender of
    a call. Programs that read the configuration itself, such as Flower, see it as well.
    """
    conf = app.conf
    if not any(isinstance(route, LaneRouter) for route in as_tuple(conf.task_routes)):
        conf.task_routes = (*as_tuple(conf.task_routes), LaneRouter(app))


def add_lanes(app: Any, settings: Settings) -> None:
    """Make *app* add the lanes to its queues and routes, now and after later changes.

    Raises:
        ConfigurationError: A queue that the program declares contradicts a lane.
    """
    app.conf.task_queues = lane_queues(app, settings, app.conf.task_queues)
    amqp = app.amqp
    theirs = type(amqp)
    if not isinstance(amqp, LanesAMQP):
        plain = theirs is AMQP
        amqp.__class__ = LanesAMQP if plain else type("LanesAMQP", (LanesAMQP, theirs), {})
        if plain:
            # A spawned pool process creates its app by this name.
            app.amqp_cls = f"{__name__}:LanesAMQP"
        amqp.task_protocols = {1: amqp.as_task_v1, 2: amqp.as_task_v2}
    for name in _KEPT:
        vars(amqp).pop(name, None)
    amqp._rtable = None
