"""``Asides``: finds out who waits aside and may come, and has them sent back to their queues.

Each worker does so for all: whose key has got room, whoever has put them aside, and whom another
worker has begun to send back and has died.

Runs in the thread of the agent. See also: :mod:`celery_budgets.shared_state.scripts.asides`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from celery_budgets.model.limit import Limit
from celery_budgets.shared_state.answers import Answer, Aside
from celery_budgets.shared_state.limit_store import LimitStore
from celery_budgets.shared_state.wish import Wish

__all__ = ["Asides", "put_aside"]

#: Longest time until it is looked again who may come, seconds: another worker may have died.
LOOK = 1.0
#: Most messages that are sent back at once.
MOST_AT_ONCE = 20


class Asides:
    """Sends back what waits aside.

    Args:
        store: The places, and who waits for them; that of the agent.
        limits: The limits of the app.
        send: Called, in the agent's thread, with what is to be sent; then :meth:`sent` is.
        wake: Wakes the agent.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        store: LimitStore,
        limits: Mapping[str, Limit],
        send: Callable[[list[Aside]], object],
        wake: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._limits = limits
        self._send = send
        self._wake = wake
        self._clock = clock
        self._sent: deque[list[Aside]] = deque()
        #: Monotonic instant at which it is looked again who may come.
        self.look_at = 0.0
        self._ended = False
        store.send_back(MOST_AT_ONCE)

    def sent(self, asides: list[Aside]) -> None:
        """Note that *asides* are in their queues; from any thread."""
        if asides:
            self._sent.append(asides)
            self._wake()

    def end(self) -> None:
        """Send nothing back any more, and leave it to others; from any thread."""
        self._ended = True
        self._store.send_back(0)
        self._wake()

    def look_soon(self) -> None:
        """Look with the next work: there is news."""
        self.look_at = 0.0

    def work(self) -> None:
        """Do what is due.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        while self._sent:
            self._store.sent(self._sent[0])
            self._sent.popleft()
        if self._clock() >= self.look_at:
            wait = self._store.poll(self._limits)
            self.look_at = self._clock() + min(LOOK if wait is None else wait, LOOK)
        taken = self._store.taken_over()
        if taken and self._ended:
            self._store.hand_on(taken)
        elif taken:
            self._send(taken)


def put_aside(store: LimitStore, refused: Sequence[tuple[Wish, Answer]]) -> list[Wish]:
    """Put calls aside; return those whose message cannot be kept, which wait in their worker.

    Raises:
        redis.exceptions.RedisError: The server does not answer.
    """
    packed = [(wish, answer, wish.packed(answer)) for wish, answer in refused]
    store.put_aside(
        (wish.to_ask(), answer, message) for wish, answer, message in packed if message is not None
    )
    for wish, answer, message in packed:
        if message is not None:
            wish.refused, wish.stepped = answer.refused, True
    return [wish for wish, _, message in packed if message is None]
