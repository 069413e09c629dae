"""``Offers``: hears, in a thread, which places of limits this process is offered.

Runs in each process that runs calls with limits. See also:
:mod:`celery_budgets.shared_state.limit_agent`, which takes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from redis.exceptions import RedisError

from celery_budgets.model.limit import Demand
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.system_thread import SystemThread

__all__ = ["Offers", "others_wait"]

logger = logging.getLogger(__name__)

#: Longest read, seconds: how soon the thread sees that it is to end.
READ = 0.5
#: Seconds until it connects again.
AGAIN = 1.0
#: Of so many in line it is looked who they are.
LOOKED_AT = 50


class Offers:
    """Subscribes to the channel of one process.

    Args:
        store: Knows the channels; its client is used by this thread alone.
        process: The name of the process.
        hear: Called, in this thread, with the holder that is offered a place, and with ``None``
            when messages may have been lost.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        store: LimitStore,
        process: str,
        hear: Callable[[str | None], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._channel = store.channels + process
        self._hear = hear
        self._clock = clock
        #: Since when the server does not answer; ``None`` if it does.
        self.away_since: float | None = None
        self._thread = SystemThread(self._run)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._thread.stop()

    def join(self) -> None:
        """Wait a little for the end of the thread."""
        self._thread.join(2 * READ)

    def _run(self, thread: SystemThread) -> None:
        while not thread.wait(0):
            try:
                with self._store.client.pubsub() as messages:
                    messages.subscribe(self._channel)
                    while not thread.wait(0):
                        self._read(messages.get_message(timeout=READ))
            except RedisError:
                self.away_since = self.away_since or self._clock()
                thread.wait(AGAIN)  # who asks tells of it
            except Exception:
                logger.exception("budgets.limits_failed: offers are heard again in %s s", AGAIN)
                thread.wait(AGAIN)

    def _read(self, message: Any) -> None:
        if message is None:
            return
        if message["type"] == "subscribe":
            self.away_since = None
            self._hear(None)  # also where the client has connected again by itself
        elif message["type"] == "message":
            self._hear(message["data"].decode())


def others_wait(store: LimitStore, process: str, demands: Iterable[Demand]) -> bool:
    """Return whether a call of another *process* stands in line for any of *demands*, or may."""
    own = f"{process}:".encode()
    try:
        with store.client.pipeline(transaction=False) as pipe:
            for demand in demands:
                name = store.name_of("line", demand.limit.name, demand.key)
                pipe.zrange(name, 0, LOOKED_AT)
            lines = pipe.execute()
    except RedisError:
        return True
    return any(
        len(line) > LOOKED_AT or not all(waits.startswith(own) for waits in line) for line in lines
    )
