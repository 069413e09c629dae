"""Deadlines that travel with messages: until when a call, and all that it sends, may run.

Instants are seconds since the epoch, so the clocks of the hosts count. Everything else in this
package that is called a deadline is monotonic and stays in its process.
"""

from __future__ import annotations

import math
from time import time
from typing import Any, NamedTuple, Self

from celery_budgets.model.budget import TimeLimits
from celery_budgets.units import parse_duration

__all__ = ["Deadline"]


class Deadline(NamedTuple):
    """Until when a call may run: to be asked to stop, and to be stopped.

    Example:
        >>> Deadline.after(10, 1.5).clamp(TimeLimits(300, 450)).hard <= 15
        True
    """

    #: Instants of the soft and the hard limit, seconds since the epoch.
    soft_at: float
    hard_at: float

    @classmethod
    def after(cls, seconds: Any, factor: float) -> Self:
        """Return the deadline *seconds* from now, with the hard one *factor* times as far.

        Raises:
            ValueError: *seconds* is no duration, or below 0.
        """
        try:
            left = parse_duration(seconds)
        except (TypeError, ValueError) as exc:
            raise ValueError(f"deadline: {exc}") from None
        if left < 0:
            raise ValueError(f"deadline: {seconds!r} must not be below 0")
        now = time()
        return cls(now + left, now + left * factor)

    @classmethod
    def of(cls, header: Any) -> Self | None:
        """Return the deadline that a message carries; producers may send anything."""
        if header is None or not isinstance(header, list | tuple) or len(header) != 2:
            return None
        try:
            soft_at, hard_at = float(header[0]), float(header[1])
        except (TypeError, ValueError, OverflowError):
            return None
        if not (math.isfinite(soft_at) and math.isfinite(hard_at)):
            return None
        return cls(soft_at, max(soft_at, hard_at))

    def earlier(self, other: Deadline | None) -> Deadline:
        """Return what keeps both deadlines."""
        if other is None:
            return self
        return Deadline(min(self.soft_at, other.soft_at), min(self.hard_at, other.hard_at))

    @property
    def passed(self) -> bool:
        """Is it too late to start?"""
        return time() >= self.soft_at

    def left(self) -> TimeLimits:
        """Return the seconds from now to both instants; negative once they are over."""
        now = time()
        soft, hard = self.soft_at - now, self.hard_at - now
        # In whole microseconds, because they are shown; but what is left is never 0, no limit.
        return TimeLimits(round(soft, 6) or soft, round(hard, 6) or hard)

    def clamp(self, limits: TimeLimits) -> TimeLimits:
        """Return *limits* of a call that starts now, cut where this deadline comes first.

        Where only the hard limit is cut, and down to the soft one, that moves below it.
        """
        left = self.left()
        soft, hard = min(limits.soft, left.soft), min(limits.hard, left.hard)
        return TimeLimits(soft if soft < hard else hard * limits.soft / limits.hard, hard)
