"""When a worker looks for deliveries that nobody renews, and hands them out again.

kombu does so every 100 s or so, which is fine for timeouts of hours. Here a worker looks every
10 s: what a dead worker held starts again after the visibility timeout and that. It does not where
deliveries may only seem to be abandoned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

__all__ = ["Sweeping"]

#: Seconds between two looks, as kombu.transport.redis.Channel.unacked_restore_interval.
EVERY = 10.0
#: Called by a timer of that very length, which may be early by some milliseconds.
EARLY = 0.5
#: For how long a worker that dies while it looks keeps others from it, seconds; kombu's is 300.
MUTEX = 30
#: Options by which a program says itself how often.
_OPTIONS = frozenset({"unacked_restore_interval", "unacked_restore_throttle"})


class Sweeping:
    """Takes the place of kombu.transport.redis.QoS.restore_visible (5.5 to 5.7).

    Differs in when it looks, and in nothing else.

    Args:
        may: Returns whether this worker may look now.
        options: ``broker_transport_options`` of the app.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        may: Callable[[], bool],
        options: Mapping[str, Any],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._may = may
        self._theirs = bool(_OPTIONS & set(options))
        self._their_mutex = "unacked_mutex_expire" in options
        self._clock = clock
        self._next_at = clock()

    def join(self, qos: Any) -> None:
        """Have *qos* look as said."""
        if not self._their_mutex:
            qos.channel.unacked_mutex_expire = MUTEX
        restore = qos.restore_visible
        qos.restore_visible = lambda **how: self._look(restore, how)

    def _look(self, restore: Callable[..., Any], how: dict[str, Any]) -> Any:
        if not self._may():
            return None
        if self._theirs:
            return restore(**how)
        now = self._clock()
        if now < self._next_at:
            return None
        self._next_at = now + EVERY - EARLY
        return restore(**{**how, "interval": 1})
