"""The running call in its own process: its limits, its clock, its memory.

Runs in the pool process (or, on the other pools, in the worker). The task body reaches the
call as ``self.budget``. See also: :mod:`celery_budgets.execution.limits.watchdog`, which enforces
it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_budgets.model.deadline import Deadline
from celery_budgets.units import format_duration

if TYPE_CHECKING:
    from celery_budgets.model.budget import Budget, TimeLimits
    from celery_budgets.model.outcomes import Outcome

__all__ = ["SECONDS_TO_STOP", "Call", "HardLimitReached", "Terms"]

#: How long a call goes on that has lost its lease, so that another may run in its place, seconds.
SECONDS_TO_STOP = 1.0


class Terms(NamedTuple):
    """The terms of a call, which the worker sends along: its limits, and how full the lane was."""

    lane: str
    #: Limits in force, seconds.
    soft: float
    hard: float
    #: Highest soft limit that :meth:`Call.extend` may reach, seconds; ``None``: unlimited.
    ceiling: float | None
    #: Running calls including this one, and the limit: in the lane, in the worker.
    lane_active: int = 0
    lane_limit: int = 0
    global_active: int = 0
    global_limit: int = 0
    #: Highest hard limit that :meth:`Call.extend` may reach, seconds; ``None``: unlimited.
    hard_ceiling: float | None = None
    #: Its limits over the fleet, and for how long only those kept it from its start, seconds.
    limits: tuple[str, ...] = ()
    limit_wait: float = 0.0

    @staticmethod
    def packed(*fields: Any) -> tuple[Any, ...]:
        """Return *fields*, in the order of this class, to send; ``Terms(*packed)`` unpacks them.

        A plain tuple, because pickling the class takes longer than everything else in a call.
        """
        return fields


class HardLimitReached(BaseException):
    """Raised in a call at its hard limit where its process cannot be killed.

    Not an :class:`Exception`, so that ``except Exception`` in the body does not keep the call
    alive. :class:`celery_budgets.BudgetedTask` turns it into ``TimeLimitExceeded``.
    """


class Call:
    """A running call and its usage.

    Args:
        task_id: Id of the task.
        lane: Name of its lane.
        budget: The budget in force, for memory levels and the action at the soft limit.
        limits: The time limits in force, seconds from now.
        ceiling: Highest soft limit that :meth:`extend` may reach, seconds from the start.
        hard_ceiling: The same for the hard limit; ``None``: it moves along with the soft one.
        memory_guarded: ``False``: memory is measured, but limits are not enforced.
    """

    #: Whether it is a block under a budget (:mod:`celery_budgets.blocks.call`) and no task.
    is_block: ClassVar[bool] = False

    __slots__ = (
        "_happened", "budget", "ceiling", "due_at", "hard_at", "hard_ceiling", "hard_sent",
        "has_state", "lane", "limits",
        "memory_due", "memory_guarded", "memory_sent", "memory_warned",
        "moved", "open", "outcome", "parent",
        "rss_after", "rss_before", "rss_peak", "soft_at", "soft_exceeded", "soft_sent",
        "started_at", "started_mono", "task_id", "terminated", "thread_id", "twin", "wall_seconds",
    )  # fmt: skip

    def __init__(
        self,
        task_id: str,
        lane: str,
        budget: Budget,
        limits: TimeLimits,
        *,
        rss: int = 0,
        ceiling: float | None = None,
        hard_ceiling: float | None = None,
        memory_guarded: bool = True,
    ) -> None:
        self.task_id = task_id
        self.lane = lane
        self.budget = budget
        self.limits = limits
        soft, hard = limits
        self.ceiling = math.inf if ceiling is None else max(ceiling, soft)
        self.hard_ceiling = math.inf if hard_ceiling is None else max(hard_ceiling, hard)
        #: The enclosing call in the same process.
        self.parent: Call | None = None
        #: Whether its body was skipped because a twin (same idempotency key) runs or has run.
        self.twin = False
        #: The due time in its message, which distinguishes messages with the same task id.
        self.due_at: float | None = None
        #: How it ended; ``None`` while it runs.
        self.outcome: Outcome | None = None
        self.thread_id = threading.get_ident()
        self.started_at = time()
        self.started_mono = now = monotonic()
        #: Monotonic instants of the two limits.
        self.soft_at, self.hard_at = now + soft, now + hard
        #: True while the body runs: only then may a limit interrupt the thread.
        self.open = True
        #: Called when the limits have moved.
        self.moved: Callable[[Call], None] | None = None
        self.soft_sent = self.hard_sent = self.memory_warned = self.soft_exceeded = False
        #: Whether it was terminated by the soft signal, which its body may handle.
        self.terminated = False
        #: Whether this attempt has saved a state, or found one (tasks.task_call).
        self.has_state = False
        self.memory_guarded = memory_guarded
        #: RSS at which MemoryLimitExceeded is to be raised in the body, bytes; 0: not raised.
        self.memory_due, self.memory_sent = 0, False
        self._happened: tuple[str, ...] = ()
        #: Bytes of RSS; the peak is the highest sample.
        self.rss_before = self.rss_after = self.rss_peak = rss
        self.wall_seconds = 0.0

    def remaining(self) -> float:
        """Return the seconds left until the soft time limit; negative once it has passed."""
        return self.soft_at - monotonic()

    def extend(self, seconds: float) -> float:
        """Move both time limits *seconds* later, at most to the lane's ``max_timeout``.

        Returns:
            The seconds that were granted; 0.0 once the maximum is reached.

        Raises:
            ValueError: *seconds* is negative or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"extend({seconds!r}): give seconds of 0 or more")
        granted = min(seconds, max(0.0, self.started_mono + self.ceiling - self.soft_at))
        # The hard limit first: at no instant may it lie below the soft one.
        self.hard_at = min(self.hard_at + granted, self.started_mono + self.hard_ceiling)
        self.soft_at += granted
        if self.remaining() > 0:
            # The soft limit lies ahead again, and must be enforced again.
            self.soft_exceeded, self.soft_sent = self.soft_exceeded or self.soft_sent, False
        if granted and self.moved is not None:
            self.moved(self)
        return granted

    def bring_forward(self, *, soft_at: float = math.inf, hard_at: float = math.inf) -> None:
        """Move the limits to these monotonic instants where these are earlier."""
        # The hard limit first: at no instant may it lie below the soft one.
        self.hard_at = min(self.hard_at, hard_at)
        self.soft_at = min(self.soft_at, soft_at)
        if self.moved is not None:
            self.moved(self)

    def deadline(self) -> Deadline | None:
        """Return its limits as instants since the epoch; ``None`` if it has none."""
        if not math.isfinite(self.soft_at):
            return None
        ahead = time() - monotonic()
        return Deadline(self.soft_at + ahead, self.hard_at + ahead)

    def check(self) -> None:
        """Raise if a limit is exceeded; for loops in code that cannot be interrupted.

        Raises:
            SoftTimeLimitExceeded: Past the soft limit, if the budget raises at it.
            TimeLimitExceeded: Past the hard limit.
        """
        now = monotonic()
        if now >= self.hard_at:
            raise TimeLimitExceeded(self.limits.hard)
        if now >= self.soft_at and self.budget.soft == "raise":
            self.soft_sent = True
            raise SoftTimeLimitExceeded(self.limits.soft)

    def first(self, event: str) -> bool:
        """Return whether *event* occurs for the first time in this call, and remember it."""
        if event in self._happened:
            return False
        self._happened += (event,)
        return True

    def over_hard_limit(self, *, late: bool) -> bool:
        """Return whether the call has exceeded its hard limit, after its body has ended.

        Args:
            late: Whether a body that was not interrupted but ended after the limit counts.
        """
        return self.hard_sent or (late and monotonic() >= self.hard_at)

    def close(self, now: float, rss: int) -> None:
        """Record the end of the body: at *now* (monotonic), in a process of *rss* bytes."""
        self.wall_seconds = now - self.started_mono
        self.soft_exceeded = self.soft_exceeded or self.soft_sent or now > self.soft_at
        self.rss_after = rss
        if rss > self.rss_peak:
            self.rss_peak = rss

    def __repr__(self) -> str:
        return (
            f"<Call {self.task_id} lane={self.lane} remaining={format_duration(self.remaining())}>"
        )
