"""Decides which lane a call belongs to, and so which queue its message goes to.

Runs in the sending process, and again in the worker. The first match wins: the explicit queue,
the task's own ``lane``, the tool table, the default lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app

from celery_budgets.config.settings import settings_of
from celery_budgets.model.priority import Broker, Priority, level_of, low_queue, number_of

if TYPE_CHECKING:
    from celery_budgets.model.lanes import Lane, Lanes

__all__ = ["MAPPING", "LaneRouter", "lane_of", "mapped_name"]

#: Celery's own tasks that run another task many times (celery.app.builtins).
MAPPING = frozenset({"celery.map", "celery.starmap", "celery.chunks"})


def lane_of(lanes: Lanes, name: str, task: Any = None, queue: str | None = None) -> Lane:
    """Return the lane of a call.

    Args:
        lanes: The table of lanes.
        name: The task's name.
        task: The task, if it is registered in this process; for its ``lane``.
        queue: Name of the queue that the call names or was received from.

    Raises:
        ConfigurationError: The task names an unknown lane.
    """
    lane = lanes.of_queue(queue)
    if lane is not None:
        return lane
    declared = getattr(task, "lane", None)
    if declared is not None:
        return lanes[declared]
    if name.startswith("celery."):
        # Celery's own tasks, such as chord_unlock, never match the tool table.
        return lanes.default
    return lanes.of_tool(name) or lanes.default


def mapped_name(args: Any, kwargs: Any) -> str | None:
    """Return the name of the task in the arguments of ``map``, ``starmap`` or ``chunks``."""
    task = kwargs.get("task") if isinstance(kwargs, dict) else None
    if task is None and isinstance(args, list | tuple) and args:
        task = args[0]
    name = task.get("task") if isinstance(task, dict) else task
    return name if isinstance(name, str) else None


def _by_priority(app: Any, lane: Lane, options: dict[str, Any]) -> dict[str, Any]:
    """Return queue and priority of a message in *lane*; by default the lane's priority.

    A priority word in *options* is replaced by its number there, since Celery prefers *options*
    to what a router returns.
    """
    broker = Broker.of(app)
    if broker is None:
        return {"queue": lane.queue}
    number = options.get("priority")
    if number is None:
        number = number_of(lane.priority, broker)
    elif isinstance(number, str):
        number = number_of(Priority.named(number, f"lane {lane.name!r}"), broker)
        options["priority"] = number
    low = broker is Broker.RABBITMQ and level_of(number, broker) is Priority.LOW
    return {"queue": low_queue(lane.queue) if low else lane.queue, "priority": number}


class LaneRouter:
    """A Celery router, the last of ``task_routes``, so that routes of the program win.

    Args:
        app: The app whose lanes are used; the current app by default.
    """

    def __init__(self, app: Any = None) -> None:
        self.app = app

    def __call__(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        options: dict[str, Any],
        task: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the queue and the priority of the task's lane; the interface of Celery's routers.

        Celery prefers a queue and a priority that the call names (celery.app.routes.Router.route).
        """
        app = self.app or current_app._get_current_object()
        if name in MAPPING:
            # Sent by name; the arguments of Celery's map, starmap and chunks name the mapped task.
            name = mapped_name(args, kwargs) or name
        if task is None or task.name != name:
            # Celery before 5.7 does not pass the task; app.tasks would finalize the app.
            task = app._tasks.get(name)
        settings = settings_of(app)
        queue = getattr((options or {}).get("queue"), "name", None)
        lane = lane_of(settings.lanes, name, task, queue)
        if not settings.priorities:
            return {"queue": lane.queue}
        return _by_priority(app, lane, options or {})

    def __reduce__(self) -> tuple[type[LaneRouter], tuple[()]]:
        # A spawned pool process unpickles it with the configuration, for its own app.
        return LaneRouter, ()
