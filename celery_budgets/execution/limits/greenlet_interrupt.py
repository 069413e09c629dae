"""Interrupts calls of the pool ``gevent``.

Runs in the process that runs the call. See also: :mod:`celery_budgets.execution.limits.interrupts`.
"""

from __future__ import annotations

from types import FrameType
from typing import Any, ClassVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_budgets.execution.call import Call
from celery_budgets.execution.limits.interrupts import Interrupt

__all__ = ["GreenletInterrupt"]


class GreenletInterrupt(Interrupt):
    """Gevent: throws into the greenlet at the soft limit; Celery enforces the hard one."""

    enforces: ClassVar = {
        "soft": "where the call yields",
        "hard": "where the call yields",
        "memory": "measured over the worker, which pauses above the limit",
    }
    judges_late = True

    def __init__(self) -> None:
        self._greenlets: dict[int, Any] = {}

    def enter(self, call: Call) -> None:
        """Remember the greenlet of the call."""
        import gevent

        self._greenlets[id(call)] = gevent.getcurrent()

    def leave(self, call: Call) -> None:
        """Close the call; a throw that is scheduled for it has no effect any more."""
        call.open = False
        self._greenlets.pop(id(call), None)

    def frame_of(self, call: Call) -> FrameType | None:
        """Return the innermost frame of the greenlet, which another one has interrupted."""
        frame: FrameType | None = getattr(self._greenlets.get(id(call)), "gr_frame", None)
        return frame

    def soft(self, call: Call) -> None:
        """Throw into the greenlet from the hub, if the call is still open then."""
        call.soft_sent = True
        self._throw(call, SoftTimeLimitExceeded(call.limits.soft))

    def _throw(self, call: Call, error: BaseException) -> None:
        import gevent

        def throw() -> None:
            greenlet = self._greenlets.get(id(call))
            if greenlet is not None and call.open:
                greenlet.throw(error)

        gevent.get_hub().loop.run_callback(throw)
