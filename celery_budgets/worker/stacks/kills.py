"""Remembers the kills of the last day: in this worker, and in the Redis of the leases.

Redis is written to by a thread, so that one that does not answer delays no call. Without a Redis,
a worker that restarts has forgotten them.

Lives in the worker main process.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from time import time
from typing import TYPE_CHECKING, Any

from celery_budgets.errors import ConfigurationError
from celery_budgets.model.kill import KEPT_SECONDS, MOST_KEPT, Kill
from celery_budgets.model.outcomes import Outcome
from celery_budgets.worker.stacks.black_box import end_and_warning

if TYPE_CHECKING:
    from celery_budgets.shared_state.kill_store import KillStore
    from celery_budgets.worker.delivery import Delivery

__all__ = ["Kills"]

logger = logging.getLogger(__name__)

_KILLS = frozenset({Outcome.HARD_TIME_LIMIT, Outcome.MEMORY_LIMIT, Outcome.WORKER_LOST})


class Kills:
    """The last kills of one worker.

    Args:
        connect: Returns the store in which other processes find them; raises
            ``ConfigurationError`` where there is none.
    """

    def __init__(self, connect: Callable[[], KillStore]) -> None:
        self._connect = connect
        self._kills: deque[Kill] = deque(maxlen=MOST_KEPT)
        self._unwritten: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._told = self._alone = False
        #: How many it has seen: whoever shows them asks for them when there are more.
        self.noted = 0

    def note(self, request: Delivery, outcome: Outcome) -> None:
        """Remember that the call of *request* ended with *outcome*, if that is a kill."""
        last, _ = end_and_warning(request.stacks)
        if outcome not in _KILLS and not (outcome is Outcome.RETRIED and last is not None):
            return
        # The message of a killed call may come again; then the stack tells what ended it.
        word = last.moment if outcome is Outcome.RETRIED and last is not None else outcome.value
        kill = Kill(
            time(), request.type, request.id, request.lane.name, request.hostname, word, last
        )
        self._kills.append(kill)
        self.noted += 1
        if self._alone:
            return
        self._unwritten.put(kill.to_json())
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._write, name="celery-budgets-kills", daemon=True
            )
            self._writer.start()

    def lately(self) -> list[Kill]:
        """Return the kills of the last day, the oldest first."""
        since = time() - KEPT_SECONDS
        return [kill for kill in tuple(self._kills) if kill.at >= since]

    def _write(self) -> None:
        store: KillStore | None = None
        while True:
            kill = self._unwritten.get()
            try:
                store = store or self._connect()
                store.add(kill)
                self._told = False
            except ConfigurationError:
                self._alone = True  # there is no Redis
                return
            except Exception as exc:
                if not self._told:
                    logger.warning(
                        "budgets.kill_not_kept task_id=%s: %s: only this worker remembers it",
                        kill["task_id"], exc,
                    )  # fmt: skip
                self._told = True
