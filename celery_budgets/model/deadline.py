"""Deadlines in messages: the instants until which a call, and all calls it sends, may run.

Instants are seconds since the epoch, so the clocks of the hosts must agree. All other deadlines
in this package are monotonic and stay within a host.
"""

from __future__ import annotations

import math
from time import time
from typing import Any, NamedTuple, Self

from celery_budgets.model.budget import TimeLimits
from celery_budgets.units import parse_duration

__all__ = ["Deadline"]


class Deadline(NamedTuple):
    """The instants at which a call reaches its soft and its hard limit.

    Example:
        >>> Deadline.after(10, 1.5).clamp(TimeLimits(300, 450)).hard <= 15
        True
    """

    #: Instants of the soft and the hard limit, seconds since the epoch.
    soft_at: float
    hard_at: float

    @classmethod
    def after(cls, seconds: Any, factor: float) -> Self:
        """Return the deadline *seconds* from now; the hard instant is *factor* times as far.

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
        """Return the deadline in a message's *header*, or ``None`` if it is invalid."""
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
        """Return the earlier instants of both deadlines."""
        if other is None:
            return self
        return Deadline(min(self.soft_at, other.soft_at), min(self.hard_at, other.hard_at))

    @property
    def passed(self) -> bool:
        """Return whether a call must not start any more."""
        return time() >= self.soft_at

    def left(self) -> TimeLimits:
        """Return the seconds from now to both instants; negative once they have passed."""
        now = time()
        soft, hard = self.soft_at - now, self.hard_at - now
        # Rounded for display, but never to 0, which Celery takes as no limit.
        return TimeLimits(round(soft, 6) or soft, round(hard, 6) or hard)

    def clamp(self, limits: TimeLimits) -> TimeLimits:
        """Return *limits* of a call that starts now, shortened to this deadline.

        If that shortens only the hard limit, to the soft one or below, the soft one moves below it.
        """
        left = self.left()
        soft, hard = min(limits.soft, left.soft), min(limits.hard, left.hard)
        return TimeLimits(soft if soft < hard else hard * limits.soft / limits.hard, hard)
