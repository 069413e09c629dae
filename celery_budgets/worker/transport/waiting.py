"""How a channel waits for messages and takes none: by ``BLMOVE list list RIGHT RIGHT``.

That gives the oldest message of a list back to its own place, and so tells that there is one. It
waits on one list only, and blocks its connection: a line for each list. Lists of priorities that
have had no messages yet are not waited on; all are looked into when a wait ends, each second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from celery_budgets.worker.transport.line import Line

__all__ = ["Waits"]

#: Kept free of the connections that ``max_connections`` allows, for what is not waiting.
_OTHER_CONNECTIONS = 3


class Waits:
    """The lines of one channel that wait.

    Args:
        channel: The channel.
        look: Called when there may be messages.
    """

    def __init__(self, channel: Any, look: Callable[[], None]) -> None:
        self._channel = channel
        self._look = look
        self._lines: dict[str, Line] = {}
        #: Steps of priority, other than the first, whose lists are waited on.
        self.steps: set[int] = set()
        #: Does a line wait on each list?
        self.complete = False

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def watch(self, steps: Iterable[int]) -> None:
        """Wait on the lists of *steps* too."""
        added = set(steps) - self.steps
        if added:
            self.steps |= added
            self.complete = False

    def begin(self) -> None:
        """Wait on each list that no line waits on yet."""
        self.complete = True
        channel = self._channel
        steps = dict.fromkeys([channel.priority_steps[0], *sorted(self.steps)])
        names = [
            channel._q_for_pri(queue, step) for step in steps for queue in channel.active_queues
        ]
        most = max(1, channel.max_connections - _OTHER_CONNECTIONS)
        for name in names[:most]:
            line = self._lines.get(name)
            if line is None:
                line = self._lines[name] = Line(channel, f"WAIT {name}")
                channel.handlers[line.kind] = partial(self._on_reply, line)
            if not line.waits:
                key = channel.key(name)
                line.send(("BLMOVE", key, key, "RIGHT", "RIGHT", channel.brpop_timeout or 1))

    def _on_reply(self, line: Line) -> bool:
        """There is a message, or it is time to look where no line waits."""
        if not line.was_closed():
            line.receive()
            self.complete = False
            self._look()
        return False
