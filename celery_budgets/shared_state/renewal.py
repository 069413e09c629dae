"""Renews the leases that this process holds, in one thread.

If a lease cannot be renewed, its holder is notified before it expires, so that the work can stop
before another holder may start.

Physical limit: C code that keeps the interpreter lock for longer than a lease stops this thread as
well; the lease then expires while the work continues.

See also: :mod:`celery_budgets.shared_state.leases`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from redis.exceptions import RedisError

from celery_budgets.shared_state.leases import Lease, Leases

__all__ = ["SERVER_SECONDS", "LeaseRenewal", "keeper"]

logger = logging.getLogger(__name__)

#: Share of a lease's length after which it is renewed, and between two failing attempts.
RENEWED_AFTER = 1 / 3
TRIED_AGAIN_AFTER = 1 / 15
#: Share of its length that is left when a holder that could not renew it is notified.
LEFT_TO_STOP = 1 / 6
#: Share of its length that the server may take to answer: an attempt, which connects and then
#: sends, begins with at least LEFT_TO_STOP left and so ends before the lease does.
SERVER_SECONDS = 1 / 15


@dataclass(slots=True)
class _Held:
    """One held lease, and the monotonic instant of its next renewal."""

    leases: Leases
    lease: Lease
    needed: Callable[[], bool]
    on_lost: Callable[[Lease], None]
    due_at: float = 0.0

    def put_off(self) -> None:
        """Schedule the next renewal after a successful one."""
        self.due_at = self.lease.valid_until - self.leases.length * (1 - RENEWED_AFTER)


class LeaseRenewal:
    """Renews leases in a thread, which starts with the first one.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.pid = os.getpid()
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(
        self,
        leases: Leases,
        lease: Lease,
        on_lost: Callable[[Lease], None],
        needed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Renew *lease* until :meth:`let_go`.

        Args:
            leases: The object that the lease was taken from.
            lease: The claim.
            needed: Called before each renewal; if it returns ``False``, the lease may expire.
            on_lost: Called once when the lease could not be renewed in time or another process
                has taken it; in the thread of this object, so it must not block.
        """
        held = _Held(leases, lease, needed, on_lost)
        held.put_off()
        with self._lock:
            self._held[lease.holder] = held
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="celery-budgets-leases", daemon=True
                )
                self._thread.start()
        self._wake.set()

    def let_go(self, lease: Lease) -> None:
        """Stop renewing *lease*."""
        with self._lock:
            self._held.pop(lease.holder, None)

    def _run(self) -> None:
        while True:
            try:
                delay = self.tick()
            except Exception:
                logger.exception("budgets.keeper_failed: leases are looked at again in 1 s")
                delay = 1.0
            self._wake.wait(delay)
            self._wake.clear()

    def tick(self) -> float | None:
        """Renew the leases that are due; return the seconds until the next, ``None`` if none."""
        now, error = self._clock(), None
        with self._lock:
            due = [held for held in self._held.values() if held.due_at <= now]
        for held in due:
            # A server that does not answer is not tried for each lease: that would take too long.
            error = self._renew(held) if error is None else self._put_off(held, error)
        with self._lock:
            instants = [held.due_at for held in self._held.values()]
        return max(0.0, min(instants) - self._clock()) if instants else None

    def _renew(self, held: _Held) -> RedisError | None:
        """Renew one lease; return the error if the server does not answer."""
        if not held.needed():
            self.let_go(held.lease)
            return None
        try:
            if not held.leases.renew(held.lease):
                self._lose(held, "another has taken it")
            held.put_off()
        except RedisError as exc:
            return self._put_off(held, exc)
        return None

    def _put_off(self, held: _Held, error: RedisError) -> RedisError:
        """Schedule another attempt, unless that would be too late."""
        length = held.leases.length
        held.due_at = self._clock() + length * TRIED_AGAIN_AFTER
        if held.due_at > held.lease.valid_until - length * LEFT_TO_STOP:
            self._lose(held, f"it could not be renewed: {error}")
        return error

    def _lose(self, held: _Held, why: str) -> None:
        lease = held.lease
        with self._lock:
            if self._held.pop(lease.holder, None) is None:
                return  # released meanwhile
        lease.lost = True
        logger.error("budgets.lease_lost name=%s fence=%s: %s", lease.name, lease.fence, why)
        held.on_lost(lease)


_keeper: LeaseRenewal | None = None


def keeper() -> LeaseRenewal:
    """Return the renewal of this process, created at its first lease (also after a fork)."""
    global _keeper
    if _keeper is None or _keeper.pid != os.getpid():
        _keeper = LeaseRenewal()
    return _keeper
