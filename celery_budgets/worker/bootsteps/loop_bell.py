"""``LoopBell``: has a function run soon in the worker's event loop, called from any thread.

Before 5.7, kombu's event loop does not wake for a function that another thread adds
(kombu.asynchronous.hub.Hub.call_soon): it would run up to a second later. In any version it sleeps
although what has just run there has added another one (Hub.create_loop). Loops without a hub look
several times a second anyway (worker.bootsteps.lanes_step).

Lives in the worker main process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["LoopBell"]


class LoopBell:
    """Wakes the event loop of one consumer.

    Args:
        consumer: The Celery consumer.
        act: Called in its event loop, once for any number of rings since.
    """

    def __init__(self, consumer: Any, act: Callable[[], object]) -> None:
        self._consumer = consumer
        self._act = act
        self._rung = False
        self._pipe: tuple[int, int] | None = None

    def attach(self) -> None:
        """Listen in the event loop; again after each reconnect, which resets it."""
        if self._consumer.hub is None:
            return
        if self._pipe is None:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
        self._consumer.hub.add_reader(self._pipe[0], self._hear)
        self.ring()

    def ring(self) -> None:
        """Have the function run soon."""
        if self._pipe is not None:
            with suppress(BlockingIOError):  # it is full: the loop will wake
                os.write(self._pipe[1], b"!")
        elif not self._rung:
            self._rung = True
            self._consumer.call_soon(self._run)

    def stay_awake(self) -> None:
        """Have the event loop not sleep before it has run what was added in this turn."""
        if self._pipe is not None and self._consumer.hub._ready:
            self.ring()

    def close(self) -> None:
        """Wake the event loop no more: it has ended, and so has whoever rings."""
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def _hear(self, *_: Any) -> None:
        assert self._pipe is not None
        with suppress(BlockingIOError):
            os.read(self._pipe[0], 65536)
        # Not here: kombu may be in the middle of reading from the broker.
        self._consumer.call_soon(self._run)

    def _run(self) -> None:
        self._rung = False
        self._act()
