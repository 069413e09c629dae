"""Leases in Redis: a claim on a name by one holder, which expires unless it is renewed.

Every change is one script on the server, by the server's clock, that checks the holder: a former
holder changes nothing. The record of a name outlives its lease. It stores how the work ended, and
counts the leases on the name (its *fence*, a fencing token).

Runs in the process that runs calls. See also: :mod:`celery_budgets.shared_state.renewal`, which
renews leases, and :mod:`celery_budgets.idempotency.run_once`, which uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

__all__ = ["Found", "Lease", "Leases", "State"]

_NOW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""
#: KEYS: the record. ARGV: holder, length and keep in ms, the fence that a twin waits for.
_TAKE = (
    _NOW
    + """
local record = redis.call('HMGET', KEYS[1], 'state', 'holder', 'fence', 'ends', 'value')
local state, fence = record[1], tonumber(record[3] or 0)
if state == 'done' or (state == 'failed' and fence == tonumber(ARGV[4])) then
  return {state, fence, 0, record[5] or ''}
end
if state == 'running' and record[2] ~= ARGV[1] and tonumber(record[4]) > now then
  return {state, fence, tonumber(record[4]) - now, ''}
end
redis.call('HDEL', KEYS[1], 'value')
redis.call('HSET', KEYS[1], 'state', 'running', 'holder', ARGV[1], 'fence', fence + 1,
           'ends', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'free', fence + 1, tonumber(ARGV[2]), ''}
"""
)
#: KEYS: the record. ARGV: holder, length and keep in ms.
_RENEW = (
    _NOW
    + """
local record = redis.call('HMGET', KEYS[1], 'state', 'holder')
if record[1] ~= 'running' or record[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'ends', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)
#: KEYS: the record. ARGV: holder, state, value, keep in ms.
_SETTLE = """
local record = redis.call('HMGET', KEYS[1], 'state', 'holder')
if record[1] ~= 'running' or record[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'value', ARGV[3])
redis.call('HDEL', KEYS[1], 'holder', 'ends')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""


class State(StrEnum):
    """The state of a name."""

    FREE = "free"  #: it is not held, and no end is recorded
    RUNNING = "running"  #: a holder's lease has not expired
    DONE = "done"  #: the work has succeeded
    FAILED = "failed"  #: the work has failed


class Lease:
    """A claim that this process holds, or has lost.

    Args:
        name: The claimed name.
        holder: Id of the holder, unique to this claim.
        fence: Number of leases on the name up to this one.
        valid_until: Monotonic instant until which no other process can take it.
    """

    def __init__(self, name: str, holder: str, fence: int, valid_until: float) -> None:
        self.name = name
        self.holder = holder
        self.fence = fence
        self.valid_until = valid_until
        #: Whether it could not be renewed in time, or another process has taken it.
        self.lost = False

    def __repr__(self) -> str:
        return f"<Lease {self.name} fence={self.fence}{' lost' if self.lost else ''}>"


class Found(NamedTuple):
    """The result of an attempt to take a lease."""

    #: ``FREE``: :attr:`lease` is ours now.
    state: State
    fence: int
    #: Seconds until another holder's lease expires.
    left: float
    #: The value that was passed to :meth:`Leases.settle`.
    value: bytes
    lease: Lease | None


class Leases:
    """Leases of the same length on one server.

    Args:
        client: A client of the server whose replies are bytes.
        length: How long a lease lasts unless it is renewed, seconds.
        retention: How long the end of the work is kept, seconds.
        prefix: Put before each name.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        client: Any,
        *,
        length: float,
        retention: float,
        prefix: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.length = length
        self.retention = retention
        self._prefix = prefix
        self._clock = clock
        self._take = client.register_script(_TAKE)
        self._renew = client.register_script(_RENEW)
        self._settle = client.register_script(_SETTLE)
        self._length_ms = max(1, round(length * 1000))
        # While the work runs, its record must not expire before its lease.
        self._keep_ms = max(round(retention * 1000), 2 * self._length_ms)

    def take(self, name: str, waited_for: int = 0) -> Found:
        """Take a lease on *name* if it is free, or if its lease has expired.

        Args:
            name: The name to claim.
            waited_for: Fence of a lease that the caller has waited for: if its work has failed
                meanwhile, that failure is returned instead.

        Raises:
            redis.exceptions.RedisError: The server does not answer. It may have granted the lease
                nevertheless, which then expires by itself.
        """
        holder, sent_at = uuid4().hex, self._clock()
        state, fence, left_ms, value = self._take(
            keys=[self._prefix + name],
            args=[holder, self._length_ms, self._keep_ms, waited_for],
        )
        found = State(state.decode())
        lease = None
        if found is State.FREE:
            # Counted from before the request: the server's lease starts later.
            lease = Lease(name, holder, fence, sent_at + self.length)
        return Found(found, fence, left_ms / 1000, value, lease)

    def renew(self, lease: Lease) -> bool:
        """Extend *lease* by its full length from now; return whether this process still held it.

        An expired lease is renewed too if no other process has taken it since.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        sent_at = self._clock()
        held = self._renew(
            keys=[self._prefix + lease.name], args=[lease.holder, self._length_ms, self._keep_ms]
        )
        if held:
            lease.valid_until = sent_at + self.length
        return bool(held)

    def settle(self, lease: Lease, state: State, value: bytes = b"") -> bool:
        """End *lease*, and record how the work ended; return whether this process still held it.

        Args:
            lease: The claim.
            state: ``DONE`` and ``FAILED`` are stored with *value*; ``FREE`` only releases.
            value: The value that later attempts to take the name find.

        Raises:
            redis.exceptions.RedisError: The server does not answer; a retry is safe.
        """
        keep_ms = max(1, round(self.retention * 1000))
        args = [lease.holder, state.value, value, keep_ms]
        return bool(self._settle(keys=[self._prefix + lease.name], args=args))
