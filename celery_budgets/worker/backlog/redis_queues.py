"""Reads queues in Redis: how many messages lie in their lists, and when the oldest was published.

kombu keeps a list per queue and priority, its oldest message at the right. A message may have
megabytes, of which Redis hands out only the time in its header: a script searches for it, which
costs little, since a body has no quotation marks (base64).

Runs in a thread of the worker main process, by a connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_budgets.model.headers import HEADER_DUE_AT
from celery_budgets.worker.transport.renewing.unacked_index import UnackedIndex

__all__ = ["RedisQueues"]

#: KEYS: lists. ARGV: the name of the header. Returns for each list what stands in the header of
#: its oldest message; empty where there is no message, or it has no such header.
OLDEST = """
local found = {}
for i = 1, #KEYS do
  local text = redis.call('LINDEX', KEYS[i], -1)
  found[i] = ''
  if text then
    local _, last = string.find(text, ARGV[1], 1, true)
    if last then found[i] = string.match(text, '^%s*:%s*([%d%.eE+-]+)', last + 1) or '' end
  end
end
return found
"""


class RedisQueues:
    """Reads the queues of one worker.

    Args:
        channel: A channel of kombu.transport.redis; read here, and not used later.
        timeout: How long the server may take to answer, seconds, where the app does not say.
    """

    #: Whether messages can be looked at.
    shows_messages = True

    def __init__(self, channel: Any, timeout: float) -> None:
        self._own = UnackedIndex(channel, timeout)
        self._steps = list(channel.priority_steps)
        # Relies on kombu.transport.redis.Channel._q_for_pri (5.5 to 5.7).
        self._list_of = channel._q_for_pri

    def read(self, queues: Iterable[str]) -> dict[str, tuple[int, float | None]]:
        """Return for each queue its number of messages, and when the oldest was published.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses.
        """
        lists = {queue: self._lists_of(queue) for queue in queues}
        with self._own.client.pipeline(transaction=False) as pipe:
            for keys in lists.values():
                for key in keys:
                    pipe.llen(key)
                pipe.eval(OLDEST, len(keys), *keys, f'"{HEADER_DUE_AT}"')
            replies = iter(pipe.execute(raise_on_error=False))
        return {queue: _facts([next(replies) for _ in keys], next(replies))
                for queue, keys in lists.items()}  # fmt: skip

    def _lists_of(self, queue: str) -> list[str]:
        return [self._own.prefix + self._list_of(queue, step) for step in self._steps]

    def rest(self) -> None:
        """Nothing to do: a connection that is not used costs nothing."""

    def close(self) -> None:
        """Close the connection."""
        self._own.close()


def _facts(lengths: list[Any], headers: Any) -> tuple[int, float | None]:
    for length in lengths:
        if isinstance(length, Exception):
            raise length
    # Who may read lists need not be allowed to run scripts: then it is unknown how old they are.
    known = [float(text) for text in headers if text] if isinstance(headers, list) else []
    return sum(lengths), min(known, default=None)
