"""The scripts by which calls wait aside, in Redis, for a key of a limit that is full.

A call that was put aside stands in the line of its key as ``aside:name``, by when it asked first.
Beside the names of each limit and key there are three for all:

- *asides*, a hash: the messages by name.
- *looks*, a sorted set: keys in whose line somebody stands, by when to look at them.
- *back*, a sorted set: those whose turn it is, by when a worker may send them to their queue:
  another takes over from one that has died meanwhile.

A message is gone from here when it was sent, or when it has arrived and its call may start. It is
sent before it is removed, and put aside before it is acknowledged: a crash loses none.

The scripts run in the Redis server. See also: :mod:`celery_budgets.shared_state.scripts.limits`.
"""

from __future__ import annotations

from hashlib import sha1

from celery_budgets.shared_state.scripts.demands import DEMANDS

__all__ = ["POLL", "PUT_ASIDE", "SENT", "TAKE_BACK", "aside_name", "aside_pattern"]

#: ARGV of the demands, then which of them is full, and the message.
PUT_ASIDE = (
    DEMANDS
    + """
local full, message = demands[tonumber(ARGV[#ARGV - 1])], ARGV[#ARGV]
for _, demand in ipairs(demands) do look(demand) leave(demand) end
redis.call('ZREM', back, ARGV[6])
redis.call('HSET', asides, ARGV[6], message)
redis.call('ZADD', full.line, 'NX', ARGV[5], aside .. ' ' .. full.weight)
redis.call('PERSIST', full.line)
for _, demand in ipairs(demands) do
  if demand.most > 0 or demand.keyed then tidy(demand) end
end
return collect()
"""
)
#: Takes back what was put aside, if it is there still: its message goes elsewhere.
TAKE_BACK = (
    DEMANDS
    + """
for _, demand in ipairs(demands) do
  redis.call('ZREM', demand.line, aside .. ' ' .. demand.weight)
  look(demand)
  leave(demand)
  if demand.most > 0 or demand.keyed then tidy(demand) end
end
redis.call('ZREM', back, ARGV[6])
redis.call('HDEL', asides, ARGV[6])
return collect()
"""
)
#: Returns the keys to look at now, how long it is until the next, and what is to be sent back.
POLL = (
    DEMANDS
    + """
local due_now = redis.call('ZRANGEBYSCORE', looks, '-inf', now, 'LIMIT', 0, 50)
local next = redis.call('ZRANGE', looks, 0, 0, 'WITHSCORES')[2]
return {due_now, next and math.max(0, tonumber(next) - now) or -1, collect()}
"""
)
#: KEYS: back, asides. ARGV: of each its name, and until when it was the caller's.
SENT = """
for place = 1, #ARGV, 2 do
  -- Else it has come back already, and was put aside anew.
  if redis.call('ZSCORE', KEYS[1], ARGV[place]) == ARGV[place + 1] then
    redis.call('ZREM', KEYS[1], ARGV[place])
    redis.call('HDEL', KEYS[2], ARGV[place])
  end
end
"""


def aside_name(task_id: str, due_at: float | None) -> str:
    """Return the name of a message, the same for each of its deliveries.

    Args:
        task_id: Id of its call.
        due_at: When it was due first, seconds since the epoch; tells a retry from what it repeats.
    """
    return f"{_hash(task_id)}-{_hash(str(due_at))}"


def aside_pattern(task_id: str) -> str:
    """Return what the names of all messages of one call match in Redis."""
    return f"{_hash(task_id)}-*"


def _hash(text: str) -> str:
    # An id may be any text, also one that is no UTF-8.
    return sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
