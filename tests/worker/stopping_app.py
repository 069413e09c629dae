"""A worker that stops, or loses its connection, while a call is on its way into a process.

Written to the process, and not yet known to have begun: Celery's window of some 100 us, held
open here until the process has run the call.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, signals
from celery.utils.log import get_logger
from celery.worker import state
from kombu.asynchronous import get_event_loop
from redis import Redis

from celery_budgets import BudgetedTask, Budgets, Lane

app = Celery("stopping")
budgets = Budgets(app, lanes=[Lane("safe", 1), Lane("once", 1, idempotent=False)])

#: What happens then: "stop", or "reconnect".
THEN = os.environ.get("THEN", "stop")
WHERE = os.environ["CELERY_RESULT_BACKEND"]
logger = get_logger(__name__)


@app.task(base=BudgetedTask, lane="safe")
def safe() -> str:
    Redis.from_url(WHERE).incr("ran:safe")
    return "done"


@app.task(base=BudgetedTask, lane="once")
def once() -> str:
    Redis.from_url(WHERE).incr("ran:once")
    return "done"


class Window:
    """Stands where the event loop reads what a process says, until a call has run there.

    Args:
        read: What the event loop calls.
        pool: The pool, whose processes are all up.
    """

    def __init__(self, read: Any, pool: Any) -> None:
        self._read, self._pool = read, pool
        self._open = True

    def __call__(self, descriptor: int) -> None:
        """Read nothing the first time, and have it happen instead."""
        written = [job for job in self._pool._cache.values() if job._write_to is not None]
        if not (self._open and written):
            self._read(descriptor)
            return
        assert not any(job._accepted for job in written)
        self._open = False
        redis, deadline = Redis.from_url(WHERE), time.monotonic() + 10
        while not redis.exists("ran:safe", "ran:once") and time.monotonic() < deadline:
            time.sleep(0.01)
        logger.warning("window closes: %s", THEN)
        if THEN == "stop":
            state.should_stop = 0
        else:
            raise app_errors()[0]("the connection is lost, says the test")


def app_errors() -> tuple[type[Exception], ...]:
    return tuple(app.connection_for_read().connection_errors)


@signals.worker_ready.connect
def hold(sender: Any, **_: Any) -> None:
    """Open the window, before the first call can come."""
    hub, pool = get_event_loop(), sender.pool._pool
    window = Window(pool._result_handler.handle_event, pool)
    # What stands here is registered again after each message (ResultHandler._recv_message).
    pool._result_handler.handle_event = window
    for descriptor in pool._fileno_to_outq:
        hub.add_reader(descriptor, window, descriptor)
