"""Results that record when a call waits for another call of its own lane.

The waiting call keeps its slot, which the other call may need. The worker looks for such calls in
full lanes (:mod:`celery_budgets.worker.lanes.self_waiting`). Celery refuses ``get()`` in a task
unless ``disable_sync_subtasks=False`` is given.

Covers: results of budgeted tasks, alone and in groups.
Does not cover: results of ``send_task`` and ``app.AsyncResult``, which do not know their task, and
circular waits over several lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.app.base import _unpickle_appattr
from celery.result import AsyncResult

from celery_budgets.config.settings import settings_of
from celery_budgets.execution.context import running_task
from celery_budgets.execution.safely import guarded

if TYPE_CHECKING:
    from celery_budgets.execution.call import Call

__all__ = ["LaneResult", "group_result", "note_queue"]


class LaneResult(AsyncResult):
    """The result of a budgeted task, which knows the lane that the call was sent to.

    Arguments are those of :class:`celery.result.AsyncResult`.
    """

    def __init__(
        self,
        id: str,  # noqa: A002  Celery's name
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        super().__init__(id, backend, task_name, app, parent)
        self._task_name = task_name
        #: The queue that the caller named explicitly.
        self.named_queue: Any = None

    def lane(self) -> str | None:
        """Return the name of its lane; ``None`` if that is unknown."""
        if self._task_name is None:
            return None
        options = {} if self.named_queue is None else {"queue": self.named_queue}
        queue = self.app.amqp.router.route(options, self._task_name)["queue"]
        lane = settings_of(self.app).lanes.of_queue(queue.name)
        return lane.name if lane is not None else None

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the result, as Celery does; a call of the same lane is recorded as waiting."""
        with _noted([self]):
            return super().get(*args, **kwargs)

    wait = get

    def __reduce__(self) -> Any:
        # As app.AsyncResult: the process that unpickles it may not have this package.
        return _unpickle_appattr, ("AsyncResult", self.__reduce_args__())


class _Noted:
    """Adds recording to Celery's group result, whose ``join`` calls ``get`` of each result."""

    results: Any

    def join_native(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for all results at once, as Celery does; a call of their lane is recorded."""
        with _noted(self.results):
            return super().join_native(*args, **kwargs)  # type: ignore[misc]


def group_result(app: Any) -> type:
    """Return a subclass of the group result class of *app* that records waits."""
    plain: type = app.GroupResult
    if issubclass(plain, _Noted):
        return plain
    return type(plain.__name__, (_Noted, plain), {"__module__": plain.__module__})


def note_queue(result: Any, options: Mapping[str, Any]) -> Any:
    """Return *result* after storing the queue named in *options*, if any."""
    if isinstance(result, LaneResult):
        result.named_queue = options.get("queue")
    return result


@contextmanager
def _noted(results: Iterable[Any]) -> Iterator[None]:
    call = guarded(_waiting_call, results)
    if call is None:
        yield
        return
    from celery_budgets.execution.flight.recorder import recorder  # only where a call runs

    recorder().waits(call, waits=True)
    try:
        yield
    finally:
        recorder().waits(call, waits=False)


def _waiting_call(results: Iterable[Any]) -> Call | None:
    """Return the running call, if one of *results* is of its lane."""
    call = running_task()
    if call is None:
        return None
    waited = (result for result in results if isinstance(result, LaneResult))
    return call if any(result.lane() == call.lane for result in waited) else None
