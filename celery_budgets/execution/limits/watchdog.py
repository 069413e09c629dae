"""The watchdog: one thread in the process that runs calls, which enforces their limits.

On prefork it is the second line behind the worker's timers, for when the worker's event loop
is blocked; on the other pools it is the only one. It also samples the memory of the process.

Physical limit: between two samples memory is not seen, and a call in C code that keeps the
interpreter lock stops this thread too; there the worker main process is the last line.

See also: :mod:`celery_budgets.execution.limits.interrupts`, which knows how each pool is
interrupted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType

from celery_budgets.execution.call import Call
from celery_budgets.execution.child_tracking import family
from celery_budgets.execution.flight.recorder import ENVIRONMENT, recorder
from celery_budgets.execution.limits.interrupts import Interrupt, ProcessInterrupt
from celery_budgets.execution.memory import rss as memory
from celery_budgets.execution.safely import guarded
from celery_budgets.execution.stacks.writer import stack_writer
from celery_budgets.model.per_process import OncePerProcess
from celery_budgets.units import format_duration, format_size

__all__ = ["Watchdog", "install", "watchdog"]

logger = logging.getLogger(__name__)

#: Seconds between two checks while calls run, and the shortest when memory grows fast.
TICK = 0.1
FASTEST_TICK = 0.01
#: How long before its hard limit the stack of a call is noted, seconds; at most a quarter of it.
BEFORE_END = 0.5


class Watchdog:
    """Enforces the limits of the calls in this process.

    Args:
        interrupt: How calls are interrupted, unless :meth:`watch` is given another one.
        read_rss: Returns the resident set size of this process, bytes.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        interrupt: Interrupt,
        read_rss: Callable[[], int] = memory.rss,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.interrupt = interrupt
        self._read_rss = read_rss
        self._clock = clock
        self._calls: dict[int, tuple[Call, Interrupt]] = {}
        self._wake = threading.Event()
        self._idle = False
        self._thread: threading.Thread | None = None
        # Reentrant: garbage collection inside it may close a generator that ends a block.
        self._lock = threading.RLock()
        self._last = (0.0, 0)
        #: The call that was released last.
        self.released: Call | None = None

    def watch(self, call: Call, interrupt: Interrupt | None = None) -> None:
        """Enforce the limits of *call* until :meth:`release`; called in the thread that runs it.

        Args:
            call: The call.
            interrupt: How it is interrupted; ``None``: like all tasks of this process.
        """
        self._calls[id(call)] = call, interrupt or self.interrupt
        if self._thread is None:
            self._start()
        if self._idle:
            self._wake.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return  # another thread was first
            self._thread = threading.Thread(
                target=self._run, name="celery-budgets-watchdog", daemon=True
            )
            self._thread.start()

    def release(self, call: Call) -> None:
        """Stop enforcing the limits of *call*."""
        self._calls.pop(id(call), None)
        self.released = call

    def end_soon(self, task_id: str, seconds: float) -> None:
        """Move the limits of a running call: the soft one to now, the hard one to *seconds* on."""
        now = self._clock()
        for call, _ in list(self._calls.values()):
            if call.task_id == task_id and call.open and not call.is_block:
                call.bring_forward(soft_at=now, hard_at=now + seconds)

    def frame_of(self, task_id: str) -> FrameType | None:
        """Return the innermost frame of a running call; ``None`` if there is no such call."""
        for call, interrupt in list(self._calls.values()):
            if call.task_id == task_id and call.open and not call.is_block:
                return interrupt.frame_of(call)
        return None

    def _run(self) -> None:
        while True:
            if not self._calls:
                self._idle = True
                # A call that started before the flag was set has not set the event.
                if not self._calls:
                    self._wake.wait()
                self._idle = False
                self._wake.clear()
            try:
                delay = self.tick()
            except Exception:
                logger.exception("budgets.watchdog_failed: limits are looked at again in 1 s")
                delay = 1.0
            self._wake.wait(delay)

    def tick(self) -> float:
        """Check every call once; return the seconds until the next check."""
        now, rss = self._clock(), self._read_rss()
        if self.interrupt.owns_children:
            rss = self._with_children(now, rss)
        delay = TICK
        for call, interrupt in list(self._calls.values()):
            if not call.open:
                continue
            to_limit = self._check_time(call, interrupt, now)
            delay = min(delay, to_limit, self._check_memory(call, interrupt, now, rss))
        self._last = (now, rss)
        return max(delay, FASTEST_TICK)

    def _with_children(self, now: float, rss: int) -> int:
        """Return *rss* plus the memory of the call's children, bytes.

        A call that has just begun is skipped, so that short calls cost nothing.
        """
        watched = list(self._calls.values())
        calls = (call for call, _ in watched if call.open and not call.is_block)
        call = next(calls, None)
        if call is None or call.budget.children == "leave":
            return rss
        if now - call.started_mono < TICK / 2:
            return rss
        return guarded(family().size, call, rss) or rss

    def _check_time(self, call: Call, interrupt: Interrupt, now: float) -> float:
        """Enforce the time limits of *call*; return the seconds until one is due."""
        hard_due = call.hard_at + interrupt.hard_grace
        if now >= hard_due:
            if call.first("hard_time_limit"):
                logger.warning(
                    "budgets.hard_time_limit task_id=%s lane=%s limit=%s",
                    call.task_id, call.lane, format_duration(call.limits.hard),
                )  # fmt: skip
                note_stack(call, interrupt, "hard_time_limit")
            interrupt.hard(call)
            return TICK
        to_note = call.hard_at - min(BEFORE_END, call.limits.hard / 4) - now
        if to_note <= 0 and call.first("seen_before_end"):
            note_stack(call, interrupt, "hard_time_limit")
        if now < call.soft_at:
            return call.soft_at - now
        hard_due = now + min(to_note, hard_due - now) if to_note > 0 else hard_due
        if not call.soft_exceeded:
            call.soft_exceeded = True
            logger.warning(
                "budgets.soft_time_limit task_id=%s lane=%s limit=%s action=%s",
                call.task_id, call.lane, format_duration(call.limits.soft), call.budget.soft,
            )  # fmt: skip
        soft_due = call.soft_at + interrupt.soft_grace
        if call.budget.soft == "raise" and not call.soft_sent:
            if now < soft_due:
                return soft_due - now
            if call.first("told_of_soft_limit"):
                note_stack(call, interrupt, "soft_time_limit")
            interrupt.soft(call)
        return hard_due - now

    def _check_memory(self, call: Call, interrupt: Interrupt, now: float, rss: int) -> float:
        """Record the peak, warn, kill; return the seconds until the limit may be reached."""
        if rss > call.rss_peak:
            call.rss_peak = rss
            recorder().peak(call)
        if not call.memory_guarded:
            return TICK
        if rss > call.budget.rss_warning and not call.memory_warned:
            call.memory_warned = True
            logger.warning(
                "budgets.memory_warning task_id=%s lane=%s rss=%s warning=%s limit=%s",
                call.task_id, call.lane, format_size(rss), format_size(call.budget.rss_warning),
                format_size(call.budget.max_rss),
            )  # fmt: skip
        limit = call.budget.hard_rss
        if rss > limit:
            if call.first("memory_limit"):
                logger.error(
                    "budgets.memory_limit task_id=%s lane=%s rss=%s limit=%s",
                    call.task_id, call.lane, format_size(rss), format_size(limit),
                )  # fmt: skip
                note_stack(call, interrupt, "memory_limit")
            interrupt.memory(call)
            return TICK
        if call.budget.memory == "raise" and not call.memory_sent:
            if rss > call.budget.max_rss:
                interrupt.memory_soft(call, rss)
            else:
                limit = call.budget.max_rss
        then, before = self._last
        growth = (rss - before) / (now - then) if now > then and before else 0.0
        # Half of the time to the limit: several checks precede it, however fast memory grows.
        return (limit - rss) / growth / 2 if growth > 0 else TICK


def note_stack(call: Call, interrupt: Interrupt, moment: str) -> None:
    """Write down where *call* is, unless it is a block."""
    if not call.is_block:
        guarded(stack_writer().note, call, moment, interrupt.frame_of(call))


def _new() -> Watchdog:
    return Watchdog(ProcessInterrupt() if ENVIRONMENT in os.environ else Interrupt())


#: Returns the watchdog of this process: its thread does not survive a fork.
watchdog = OncePerProcess(_new)


def install(interrupt: Interrupt) -> None:
    """Set how calls of this process are interrupted."""
    watchdog.put(Watchdog(interrupt))
