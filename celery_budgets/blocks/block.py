"""``budgets.call(...)``: any code as one call under the budget of a lane.

For code that is no task: a call to a model, a handler of a web framework, a step of a script. The
block takes a slot of this process, has its limits enforced, and is reported like a task.

See also: :mod:`celery_budgets.blocks.process_slots` and :mod:`celery_budgets.blocks.interrupt`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, cast

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from kombu.utils.uuid import uuid

from celery_budgets.blocks.call import BlockCall
from celery_budgets.blocks.interrupt import (
    FROM_OUTSIDE,
    BlockInterrupt,
    CoroutineInterrupt,
    in_coroutine,
    interrupt_here,
)
from celery_budgets.blocks.limited_slots import Asked, LimitedSlots, slots_of
from celery_budgets.blocks.limits import (
    cause_of,
    end_no_later,
    is_over_hard_limit,
    limits_within,
    outcome_at_end,
    parsed,
    refuse_generator,
)
from celery_budgets.blocks.process_slots import ProcessSlots, Slot
from celery_budgets.blocks.report import BlockReport, rss_if_known
from celery_budgets.config.settings import settings_of
from celery_budgets.errors import Throttled
from celery_budgets.execution.call import Call
from celery_budgets.execution.context import enter_block, running_block, running_call
from celery_budgets.execution.limits.async_exception import shielded
from celery_budgets.execution.limits.watchdog import watchdog
from celery_budgets.execution.outcome import outcome_of_block
from celery_budgets.model.outcomes import Outcome
from celery_budgets.sending.scope import path_here
from celery_budgets.units import parse_duration, parse_size

__all__ = ["Block"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class Block:
    """One call of any code; created by :meth:`celery_budgets.Budgets.call`.

    A context manager for one ``with`` or ``async with``, or a decorator for any number of calls.

    Note:
        In a thread a limit is an exception that is raised between two bytecodes; a blocking call
        or C code notices when it returns, and nothing can kill a thread. In a coroutine a limit
        is raised at an ``await``. A body that returns after its hard limit has exceeded it. A
        limit interrupts the thread, so a generator must not yield inside a block.

    Args:
        app: The Celery app.
        lane: Name of the lane.
        task_id: Id of the call; a new one by default.
        tool_name: Name of the code; by default that of the function, or of the lane.
        input_size: Size of its input, bytes, for its span.
        wait: Longest wait for a slot and limits, seconds; ``None``: without limit.
        limits: Fields of a budget that override the lane's.
        asked: Its limits over the fleet.

    Raises:
        ConfigurationError: A number makes no sense.
    """

    def __init__(
        self,
        app: Any,
        lane: str,
        *,
        task_id: str | None,
        tool_name: str | None,
        input_size: int | str | None,
        wait: float | str | None,
        limits: Mapping[str, Any],
        asked: Asked,
    ) -> None:
        self._app = app
        self._lane = lane
        self._task_id = task_id
        self._tool_name = tool_name
        self._input_size = parsed(lane, "input_size", parse_size, input_size)
        self._wait = parsed(lane, "wait", parse_duration, wait)
        self._limits = limits
        self._asked = asked
        self._call: BlockCall | None = None
        self._slot: Slot | None = None

    def __enter__(self) -> Call:
        """Wait for a slot, start the clock, and return the running call.

        Raises:
            RejectedByBudget: No slot in time, or no time left in the enclosing call.
        """
        if in_coroutine():
            raise TypeError(f"in a coroutine write: async with budgets.call({self._lane!r}, ...)")
        slots, slot = self._prepare()
        try:
            slots.reserve(slot, self._wait)
            self._begin(interrupt_here(), slot)
            return self._open()
        except BaseException as exc:
            self._give_up(exc)
            raise

    async def __aenter__(self) -> Call:
        """Enter the block like ``with``, without blocking the event loop."""
        slots, slot = self._prepare()
        try:
            await slots.reserve_async(slot, self._wait)
            self._begin(CoroutineInterrupt(), slot)
            return self._open()
        except BaseException as exc:
            self._give_up(exc)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the slot, report the end of the call, and raise the exception of a limit."""
        call = self._running(error)
        stray = self._leave(call)
        over = is_over_hard_limit(call, error)
        self._report.ended(call, outcome_at_end(call, error, over=over), error)
        if stray is not None:
            raise stray  # of an enclosing call, or of the user
        if over:
            raise TimeLimitExceeded(call.limits.hard) from cause_of(error)

    def __del__(self) -> None:
        """Clean up like ``__exit__``, if a limit interrupted that before its first line.

        Python may raise an asynchronous exception as a function begins, before any ``try``.
        """
        call = getattr(self, "_call", None)
        if call is None or call.outcome is not None:
            return
        call.interrupt.leave(call)
        self._release(call)  # not the context: garbage is collected inside any open block
        over = call.over_hard_limit(late=True)
        outcome = outcome_at_end(call, SoftTimeLimitExceeded(), over=over)
        self._report.ended(call, outcome, None)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the block like ``with``; turn a cancellation by a limit into its exception."""
        call = self._running(error)
        interrupt = cast("CoroutineInterrupt", call.interrupt)
        interrupt.leave(call)
        try:
            by_limit = interrupt.settle(error)
        finally:
            self._give_back(call)
        over = is_over_hard_limit(call, None if by_limit else error)
        if by_limit and not over:
            limit = SoftTimeLimitExceeded(call.limits.soft)
            self._report.ended(call, Outcome.SOFT_TIME_LIMIT, limit)
            raise limit from error
        self._report.ended(call, outcome_at_end(call, error, over=over), error)
        if over:
            raise TimeLimitExceeded(call.limits.hard) from cause_of(error)

    def __call__(self, function: F) -> F:
        """Return *function* wrapped, so that each call of it is one under this budget."""
        refuse_generator(function)
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with self._another(function):
                    return await function(*args, **kwargs)

            return call_async  # type: ignore[return-value]

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._another(function):
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    def _another(self, function: Callable[..., Any]) -> Block:
        return Block(
            self._app, self._lane, task_id=self._task_id,
            tool_name=self._tool_name or f"{function.__module__}.{function.__qualname__}",
            input_size=self._input_size, wait=self._wait, limits=self._limits, asked=self._asked,
        )  # fmt: skip

    def _prepare(self) -> tuple[ProcessSlots | LimitedSlots, Slot]:
        """Determine the lane, the budget and the enclosing call."""
        if self._slot is not None:
            raise RuntimeError("a block is entered once; call budgets.call(...) anew")
        settings = settings_of(self._app)
        lane = settings.lanes[self._lane]
        subject = f"budgets.call({self._lane!r})"
        self._budget = lane.budget.over(subject, self._limits) if self._limits else lane.budget
        self._memory_guarded = settings.memory_guard
        self._outer = cast("BlockCall | None", running_block())
        self._parent = running_call()
        self._slots = slots_of(self._app, settings, lane.name, self._asked)
        self._report = BlockReport(
            self._app, lane, self._tool_name or lane.name, self._task_id or uuid(),
            path_here(), self._input_size, monotonic(),
        )  # fmt: skip
        self._slot = Slot(lane.name, self._outer.slot if self._outer is not None else None)
        return self._slots, self._slot

    @shielded()  # the limit of an enclosing call would be taken for a failure of ours
    def _begin(self, interrupt: BlockInterrupt, slot: Slot) -> None:
        """Start the clock; the watchdog ignores the call until it is open."""
        limits, ceiling = limits_within(self._parent, self._budget, self._lane)
        self._call = call = BlockCall(
            self._report.task_id, self._lane, self._budget, limits, rss=rss_if_known(),
            ceiling=ceiling.soft, hard_ceiling=ceiling.hard, memory_guarded=self._memory_guarded,
            interrupt=interrupt, slot=slot, parent=self._parent,
        )  # fmt: skip
        call.open = False
        if self._parent is not None:
            end_no_later(call, self._parent)
        self._report.started(call, self._slots)
        try:
            interrupt.enter(call)
            watchdog().watch(call, interrupt)
        except Exception:
            logger.exception("budgets.watchdog_failed: no limit holds for %s", call.task_id)

    def _open(self) -> Call:
        call = self._running()
        enter_block(call)
        # Last, right before the return: from now on a limit may interrupt, and __exit__ runs.
        call.open = True
        return call

    def _running(self, error: BaseException | None = None) -> BlockCall:
        if self._call is None:
            raise RuntimeError("a block that was not entered")
        if isinstance(error, Throttled) and isinstance(self._slots, LimitedSlots):
            self._slots.throttle(self._call.slot, error)
        return self._call

    def _leave(self, call: BlockCall) -> BaseException | None:
        """Retry leaving until it succeeds; return an exception that came from another source."""
        interrupt, stray = call.interrupt, None
        while True:
            try:
                interrupt.leave(call)
                self._give_back(call)
                return stray
            except FROM_OUTSIDE as exc:
                if not interrupt.sent(call, exc):
                    stray = exc

    def _give_back(self, call: BlockCall) -> None:
        try:
            self._release(call)
        finally:
            enter_block(self._outer)

    def _release(self, call: BlockCall) -> None:
        call.open = False
        try:
            self._slots.release(call.slot)
        finally:
            watchdog().release(call)

    def _give_up(self, error: BaseException) -> None:
        assert self._slot is not None
        try:
            if self._call is not None:
                self._give_back(self._call)
        finally:
            self._slots.release(self._slot)
        call, self._call = self._call, None
        self._report.given_up(outcome_of_block(error, call), error)
