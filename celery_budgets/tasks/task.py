"""``BudgetedTask``: the base class of tasks that run under a budget.

See also: :mod:`celery_budgets.tasks.run`, which runs a call under its budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from celery import Task

from celery_budgets.config.routing import lane_of
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import ConfigurationError
from celery_budgets.execution.context import call_of
from celery_budgets.model.budget import Budget, TimeLimits
from celery_budgets.model.demands import weight_problems
from celery_budgets.model.lanes import Lane
from celery_budgets.sending.options import not_sent, options_for
from celery_budgets.sending.results import LaneResult, note_queue
from celery_budgets.tasks import mixins
from celery_budgets.tasks.calling import call_body, guard_call
from celery_budgets.tasks.strategies import STRATEGY, strategy_problems

if TYPE_CHECKING:
    from celery_budgets.tasks.task_call import TaskCall

__all__ = ["BudgetedTask"]

_BUDGET_ATTRIBUTES = (
    "timeout", "hard_timeout", "max_timeout", "max_rss", "rss_warning", "soft", "memory",
    "children",
)  # fmt: skip


class BudgetedTask(Task):
    """A task whose calls run under the budget of their lane.

    Set the attributes below in the decorator or on a subclass; each one that is not set is taken
    from the lane. Sizes and durations are as in :class:`celery_budgets.Budget`.

    Example:
        >>> @app.task(base=BudgetedTask, lane="critic", timeout=600)
        ... def critics_run(path): ...
    """

    abstract = True
    Request = "celery_budgets.worker.request:BudgetedRequest"
    Strategy = STRATEGY
    #: Celery's, without ``acks_late``: when Celery binds it from the configuration, it looks as if
    #: the program had set it on the task, but the lane decides it (worker.calls.acknowledgement).
    from_config = tuple(pair for pair in Task.from_config if pair[0] != "acks_late")

    #: Acknowledge a message when its call has ended; a worker sets it by the lane at its start.
    acks_late = True
    #: Name of the lane; ``None``: by the tool table.
    lane: ClassVar[str | None] = None
    #: Soft time limit, seconds.
    timeout: ClassVar[float | str | None] = None
    #: Hard time limit, seconds; ``None``: ``timeout`` x the escalation factor.
    hard_timeout: ClassVar[float | str | None] = None
    #: Highest soft limit that a call may request, seconds.
    max_timeout: ClassVar[float | str | None] = None
    #: Memory limit, bytes of RSS.
    max_rss: ClassVar[int | str | None] = None
    #: Level of the memory warning, bytes of RSS.
    rss_warning: ClassVar[int | str | None] = None
    #: Action at the soft limit: raise in the call, or only warn.
    soft: ClassVar[Literal["raise", "warn"] | None] = None
    #: Action at ``max_rss``: only warn, or raise in the call.
    memory: ClassVar[Literal["warn", "raise"] | None] = None
    #: Child processes of a call: end them when it is killed, or leave them alone.
    children: ClassVar[Literal["end", "leave"] | None] = None
    #: ``False``: acknowledge early, so that no call is redelivered; ``None``: the lane's.
    idempotent: ClassVar[bool | None] = None
    #: Names of limits over the fleet that its calls on workers are held to.
    limits: ClassVar[Sequence[str]] = ()
    #: For how many calls one counts: a number, or by limit: ``{"openai": 3}``.
    weight: ClassVar[int | Mapping[str, int]] = 1
    #: How often a killed call is run again; needs an idempotent task.
    max_kills: ClassVar[int] = 0

    _budgets: tuple[Lane, Budget] | None = None
    #: Whether a mix-in between this class and Celery's defines ``__call__``, and ``AsyncResult``.
    _is_called_behind = _results_come_behind = False

    def budget_in(self, lane: Lane) -> Budget:
        """Return the budget of this task's calls in *lane*.

        Raises:
            ConfigurationError: The attributes of the task contradict the lane's budget.
        """
        budgets = self._budgets
        if budgets is None or budgets[0] is not lane:
            own = {name: getattr(self, name) for name in _BUDGET_ATTRIBUTES}
            changes = {name: value for name, value in own.items() if value is not None}
            budget = lane.budget.over(f"task {self.name!r}", changes) if changes else lane.budget
            self._budgets = budgets = lane, budget
        return budgets[1]

    @property
    def budget(self) -> TaskCall:
        """The running call: ``remaining()``, ``extend(seconds)``, ``check()``, ``save(state)``.

        In a direct or an eager call a task has no limits, and keeps no state.
        """
        call = call_of(self.request)
        if call is not None:
            return cast("TaskCall", call)
        from celery_budgets.tasks.task_call import TaskCall

        forever = TimeLimits(float("inf"), float("inf"))
        return TaskCall(self.request.id or "", self.lane or "", Budget(), forever, task=self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body under its budget when a worker calls, plainly otherwise.

        The span of the call is open until the body has ended, however it ends.
        """
        behind = super().__call__ if self._is_called_behind else None
        return call_body(self, args, kwargs, behind)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Send a call, as Task.apply_async does, with the options that this package adds.

        ``deadline`` is the time in seconds, from now, for the call and all calls that it sends;
        with ``None`` it does not inherit the deadline of the sending call. Of all calls with the
        same ``idempotency_key`` only one runs, and the others get its result; they share a task
        id, except calls that have one already, as in a canvas. ``limit_keys`` gives the key by
        limit, in place of that of the arguments; ``weight`` is as on the task.

        Example:
            >>> critics_run.apply_async(("tools.py",), deadline=5.0)
        """
        turned = options_for(self, {**options, "task_id": task_id})
        try:
            result = super().apply_async(
                args, kwargs, producer=producer, link=link, link_error=link_error, shadow=shadow,
                **turned,
            )  # fmt: skip
        except Exception:
            not_sent(self, task_id)
            raise
        return note_queue(result, turned)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> Any:  # noqa: N802  Celery's name
        """Return the result of a call of this task, in the class that a mix-in chooses."""
        if self._results_come_behind:
            return mixins.knowing_lane(super().AsyncResult(task_id, **kwargs), self)
        return LaneResult(task_id, self.backend, self.name, self._get_app(), **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.join_mixins()

    @classmethod
    def join_mixins(cls) -> None:
        """Wrap overrides of other base classes, so that none bypasses the budget.

        Repeated when the task is bound and when a worker starts: a class may have changed since.
        """
        cls._is_called_behind = mixins.behind(cls, BudgetedTask, "__call__")
        cls._results_come_behind = mixins.behind(cls, BudgetedTask, "AsyncResult")
        guard_call(cls, _CALL)
        mixins.guard_result(cls, _RESULT)
        if cls.from_config is BudgetedTask.from_config:
            cls.from_config = mixins.configured_by(cls, BudgetedTask)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Refuse definitions that are invalid in every lane, when the task is bound to its app."""
        super().on_bound(app)
        # Before mix-ins are wrapped, which may hide their strategies.
        problems = [*strategy_problems(cls)]
        cls.join_mixins()
        if cls.Strategy == Task.Strategy:
            cls.Strategy = STRATEGY
        if isinstance(cls.max_kills, bool) or not isinstance(cls.max_kills, int):
            problems.append(f"task {cls.name!r}: max_kills {cls.max_kills!r} is no whole number")
        elif cls.max_kills and cls.idempotent is False:
            problems.append(
                f"task {cls.name!r}: max_kills {cls.max_kills} would run a task again that is "
                "declared idempotent=False; drop one of them"
            )
        if isinstance(cls.limits, str) or not all(isinstance(name, str) for name in cls.limits):
            problems.append(
                f"task {cls.name!r}: limits {cls.limits!r} must be a list of names of limits"
            )
        else:
            problems.extend(weight_problems(f"task {cls.name!r}", cls.weight, cls.limits, {}))
        ConfigurationError.raise_if(problems)

    def home(self) -> Lane:
        """Return the lane of a call that names no queue."""
        return lane_of(settings_of(self.app).lanes, self.name, self)


#: The originals, whatever is assigned to the class later.
_CALL = vars(BudgetedTask)["__call__"]
_RESULT = vars(BudgetedTask)["AsyncResult"]
