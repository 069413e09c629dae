"""``BudgetedTask``: one call under its budget, in the process that runs it.

The worker decides on lane and limits (:mod:`celery_budgets.worker.request`) and sends them
along; this module measures the call, lets the watchdog hold it to them, and describes it on
the span that is open around it. None of that may fail a call: it is logged and passed over.
"""

from __future__ import annotations

import logging
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from celery import Task

from celery_budgets.budget import Budget, TimeLimits
from celery_budgets.errors import ConfigurationError, MemoryLimitExceeded, RejectedByBudget
from celery_budgets.lanes import Lane
from celery_budgets.outcomes import Outcome
from celery_budgets.process import memory
from celery_budgets.process.call import Call, HardLimitReached, Terms
from celery_budgets.process.closing import run_body, run_to_end
from celery_budgets.process.current import call_of, note_call
from celery_budgets.process.ended import outcome_of
from celery_budgets.process.guarded import guarded
from celery_budgets.process.inherited import terms_at_start
from celery_budgets.process.recorder import recorder
from celery_budgets.process.watchdog import watchdog
from celery_budgets.routing import lane_of
from celery_budgets.sending import options_for
from celery_budgets.settings import settings_of
from celery_budgets.telemetry import spans
from celery_budgets.telemetry.names import (
    HEADER_IDEMPOTENCY_KEY,
    HEADER_TERMS,
    HEADER_WAITED_FOR,
    seconds_waited,
)
from celery_budgets.waiting import LaneResult, note_queue

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["BudgetedTask"]

logger = logging.getLogger(__name__)

_BUDGET_ATTRIBUTES = (
    "timeout", "hard_timeout", "max_timeout", "max_rss", "rss_warning", "soft", "memory",
)  # fmt: skip


class BudgetedTask(Task):
    """A task whose calls run under the budget of their lane.

    Set the attributes below in the decorator or on a subclass; each one left out is the
    lane's. Sizes and durations are as in :class:`celery_budgets.Budget`.

    Example:
        >>> @app.task(base=BudgetedTask, lane="critic", timeout=600)
        ... def critics_run(path): ...
    """

    abstract = True
    Request = "celery_budgets.worker.request:BudgetedRequest"
    #: Celery's, without ``acks_late``: bound from the configuration it would look as if the
    #: program had set it on the task, and it is the lane that says it (worker.steps).
    from_config = tuple(pair for pair in Task.from_config if pair[0] != "acks_late")

    #: Acknowledged when the call has ended; a worker sets it as the lane says at its start.
    acks_late = True
    #: Name of the lane; ``None``: by the tool table.
    lane: ClassVar[str | None] = None
    #: Soft time limit, seconds.
    timeout: ClassVar[float | str | None] = None
    #: Hard time limit, seconds; ``None``: ``timeout`` x the escalation factor.
    hard_timeout: ClassVar[float | str | None] = None
    #: Highest soft limit that a call may ask for, seconds.
    max_timeout: ClassVar[float | str | None] = None
    #: Memory limit, bytes of RSS.
    max_rss: ClassVar[int | str | None] = None
    #: Level of the memory warning, bytes of RSS.
    rss_warning: ClassVar[int | str | None] = None
    #: At the soft limit: raise in the call, or only warn.
    soft: ClassVar[Literal["raise", "warn"] | None] = None
    #: At ``max_rss``: only warn, or raise in the call.
    memory: ClassVar[Literal["warn", "raise"] | None] = None
    #: ``False``: acknowledged early and never run twice on its own; ``None``: the lane's.
    idempotent: ClassVar[bool | None] = None
    #: Re-runs that a call gets after it was killed; needs an idempotent task.
    max_kills: ClassVar[int] = 0

    _budgets: tuple[Lane, Budget] | None = None

    def budget_in(self, lane: Lane) -> Budget:
        """Return the budget of this task's calls in *lane*.

        Raises:
            ConfigurationError: What the task sets does not go with the lane's budget.
        """
        if self._budgets is None or self._budgets[0] is not lane:
            own = {name: getattr(self, name) for name in _BUDGET_ATTRIBUTES}
            changes = {name: value for name, value in own.items() if value is not None}
            budget = lane.budget.over(f"task {self.name!r}", changes) if changes else lane.budget
            self._budgets = lane, budget
        return self._budgets[1]

    @property
    def budget(self) -> Call:
        """The running call: ``remaining()``, ``extend(seconds)`` and ``check()``.

        Called directly or eagerly a task has no limits, and these say so.
        """
        call = call_of(self.request)
        if call is not None:
            return call
        forever = TimeLimits(float("inf"), float("inf"))
        return Call(self.request.id or "", self.lane or "", Budget(), forever)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body under its budget when a worker calls, plainly otherwise.

        Replaces Task.__call__, which trace_task would not call for a plain Task either: it
        calls ``run``. The span of the call is open here for every way that the body may end.
        """
        request = self.request
        terms = vars(request).get(HEADER_TERMS)
        if terms is None or call_of(request) is not None:
            return super().__call__(*args, **kwargs)
        return self._run_in_budget(request, Terms._make(terms), args, kwargs)

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
        """Send a call, as Task.apply_async does, with options of this package beside Celery's.

        ``deadline`` is how many seconds from now the call, and everything that it sends, has in
        all; with ``None`` it does not inherit the deadline of the call that sends it. Of all
        calls with one ``idempotency_key`` one runs, and the others get its result; they share a
        task id, except those that are given one, as canvas does.

        Example:
            >>> critics_run.apply_async(("tools.py",), deadline=5.0)
        """
        turned = options_for(self, {**options, "task_id": task_id})
        result = super().apply_async(
            args, kwargs, producer=producer, link=link, link_error=link_error, shadow=shadow,
            **turned,
        )  # fmt: skip
        return note_queue(result, turned)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> Any:  # noqa: N802  Celery's name
        """Return the result of a call of this task."""
        return LaneResult(task_id, self.backend, self.name, self._get_app(), **kwargs)

    def _run_in_budget(self, request: Any, terms: Terms, args: Any, kwargs: Any) -> Any:
        # Handed on: self.request is looked up in a stack of the thread each time.
        terms = self._at_start(request, terms)
        call, span = self._begin(request, terms)
        outcome = Outcome.FAILED
        try:
            result = self._run_once(request, call, args, kwargs)
        except MemoryError as exc:
            # A bare MemoryError would stop the whole worker (celery.worker.request.on_failure).
            outcome = Outcome.MEMORY_LIMIT
            clear_frames(exc.__traceback__)
            error = MemoryLimitExceeded(memory.rss())
            raise error.with_traceback(exc.__traceback__) from None
        except (SystemExit, KeyboardInterrupt):
            outcome = Outcome.WORKER_LOST
            if call is not None and watchdog().interrupt.ends_process:
                # The process is going (billiard.pool.Worker.workloop): the worker tells the end.
                guarded(self._leave_to_worker, call)
                call = None
            raise
        except BaseException as exc:
            given_up = call is not None and call.hard_sent
            outcome = Outcome.HARD_TIME_LIMIT if given_up else outcome_of(exc)
            if outcome is Outcome.MEMORY_LIMIT:
                # Its traceback would keep alive what the body held, until the next call.
                clear_frames(exc.__traceback__)
            raise
        else:
            outcome = Outcome.SUCCEEDED
            return result
        finally:
            if call is not None:
                guarded(self._end, request, call, span, outcome)

    def _at_start(self, request: Any, terms: Terms) -> Terms:
        try:
            return terms_at_start(terms, request)
        except RejectedByBudget:
            spans.leave_open(self, request.id)  # the worker tells of it
            if HEADER_WAITED_FOR in vars(request):
                from celery_budgets.idempotency import stands_for_twin

                if stands_for_twin(vars(request), self.name, request.id):
                    # Celery's trace still tells errbacks; only the twin's result stays.
                    request.ignore_result = True
            raise

    def _run_once(self, request: Any, call: Call | None, args: Any, kwargs: Any) -> Any:
        if vars(request).get(HEADER_IDEMPOTENCY_KEY) is None:
            return run_body(call, self.run, args, kwargs)
        from celery_budgets.idempotency import run_once  # and a client of Redis with it

        body = partial(run_body, call, self.run, args, kwargs)
        return run_to_end(call, partial(run_once, self, call, body))

    def _begin(self, request: Any, terms: Terms) -> tuple[Call | None, Span | None]:
        """Start the call's clock and describe it on its span, where one is recorded.

        Without a call where that fails: the body then runs unmeasured.
        """
        try:
            settings = settings_of(self.app)
            lane = settings.lanes[terms.lane]
            call = Call(
                request.id, lane.name, self.budget_in(lane), TimeLimits(terms.soft, terms.hard),
                rss=memory.rss(), ceiling=terms.ceiling, hard_ceiling=terms.hard_ceiling,
                memory_guarded=settings.memory_guard,
            )  # fmt: skip
            note_call(request, call)
            span = spans.span_of(self, call.task_id)
            writer = recorder()
            call.moved = writer.deadlines
            writer.begin(call, *spans.span_ids(span))
            watchdog().watch(call)
        except (Exception, HardLimitReached):
            logger.exception("budgets.begin_failed task=%s: the call is not measured", self.name)
            return None, None
        if span is None or not settings.tracing:
            return call, None
        guarded(spans.begin, span, call, self, terms, settings.span_name)
        return call, span

    def _leave_to_worker(self, call: Call) -> None:
        watchdog().release(call)
        spans.leave_open(self, call.task_id)

    def _end(self, request: Any, call: Call, span: Span | None, outcome: Outcome) -> None:
        dog = watchdog()
        call.outcome = outcome
        dog.release(call)
        call.close(memory.rss())
        recorder().end(call, *spans.span_ids(span))
        if call.hard_sent and dog.interrupt.abandons:
            spans.leave_open(self, call.task_id)  # ended by the worker when it was given up
        elif span is not None:
            waited = seconds_waited(vars(request), call.started_at)
            spans.end(span, call, outcome, waited, attributed=dog.interrupt.attributes_memory)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Refuse what no lane could make right, as soon as the task meets its app."""
        problems = []
        if isinstance(cls.max_kills, bool) or not isinstance(cls.max_kills, int):
            problems.append(f"task {cls.name!r}: max_kills {cls.max_kills!r} is no whole number")
        elif cls.max_kills and cls.idempotent is False:
            problems.append(
                f"task {cls.name!r}: max_kills {cls.max_kills} would run a task again that is "
                "declared idempotent=False; drop one of them"
            )
        ConfigurationError.raise_if(problems)

    def home(self) -> Lane:
        """Return the lane of a call that names no queue."""
        return lane_of(settings_of(self.app).lanes, self.name, self)
