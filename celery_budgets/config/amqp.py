"""What an app makes of its queues and routes: the lanes are always among them.

Celery makes both of the configuration when the first message is sent or a worker starts. So it
is here that lanes are added, and not only in the configuration: what a program assigns there
after ``Budgets(app)`` then stands beside the lanes, and takes nothing from them.

Runs in the process that sends, and in the worker.
"""

from __future__ import annotations

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

#: What Celery has made of the configuration, and keeps.
_KEPT = ("queues", "router", "default_queue", "create_task_message", "send_task_message")

_LIMITS = ("time_limit", "soft_time_limit")


class LanesAMQP(AMQP):
    """Celery's, with the lanes behind all that the configuration says."""

    #: Celery's own: the routes, prepared.
    _rtable: Any = None

    def flush_routes(self) -> None:
        """Prepare the routes, as AMQP.flush_routes does, with the router of lanes as the last."""
        super().flush_routes()
        if not any(isinstance(route, LaneRouter) for route in self._rtable):
            self._rtable = [*self._rtable, LaneRouter(self.app)]

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  Celery's name
        """Return the table of *queues*, as AMQP.Queues does, and of the queues of lanes."""
        ours = lane_queues(self.app, settings_of(self.app), queues)
        return super().Queues(ours, *args, **kwargs)

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """Return a message, as AMQP.as_task_v2 does.

        Differs for ``deadline=`` of ``send_task``, which has the escalation factor of the app, and
        for time limits: of a task that is not known to be a plain one they may be text.

        Raises:
            ValueError: One of them makes no sense.
        """
        message = super().as_task_v2(*args, **options)
        task = self.app._tasks.get(message.headers["task"])
        if task is None or hasattr(task, "budget_in"):
            message.headers["timelimit"] = [
                None if value is None else checked_limit(name, value)
                for name, value in zip(_LIMITS, message.headers["timelimit"], strict=True)
            ]
        seconds = options.get("deadline")
        if seconds is not None:
            factor = settings_of(self.app).budget.escalation_factor
            message.headers[HEADER_DEADLINE] = list(Deadline.after(seconds, factor))
        return message


def add_router(app: Any) -> None:
    """Put the router of lanes behind the routes of the configuration.

    Before the settings are read: where they are wrong, whoever sends a call hears of it by the
    router. It is also there for whoever reads the configuration itself, such as Flower.
    """
    conf = app.conf
    if not any(isinstance(route, LaneRouter) for route in as_tuple(conf.task_routes)):
        conf.task_routes = (*as_tuple(conf.task_routes), LaneRouter(app))


def add_lanes(app: Any, settings: Settings) -> None:
    """Have *app* add the lanes to whatever its configuration says, now and later.

    Raises:
        ConfigurationError: A queue of its own contradicts a lane.
    """
    app.conf.task_queues = lane_queues(app, settings, app.conf.task_queues)
    amqp = app.amqp
    theirs = type(amqp)
    if not isinstance(amqp, LanesAMQP):
        plain = theirs is AMQP
        amqp.__class__ = LanesAMQP if plain else type("LanesAMQP", (LanesAMQP, theirs), {})
        if plain:
            # A spawned pool process makes an app of this.
            app.amqp_cls = f"{__name__}:LanesAMQP"
        amqp.task_protocols = {1: amqp.as_task_v1, 2: amqp.as_task_v2}
    for name in _KEPT:
        vars(amqp).pop(name, None)
    amqp._rtable = None
