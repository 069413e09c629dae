"""How a channel waits for messages and takes none: by ``BLMOVE list list RIGHT RIGHT``.

That gives the oldest message of a list back to its own place, and so tells that there is one. It
waits on one list only, and blocks its connection: a line for each list. Lists of priorities that
have had no messages yet are not waited on; all are looked into when a wait ends, each second.

One message wakes all who wait for it. So who was woken and came too late waits for its turn
instead, by ``BRPOP list.turns``, at most a second. Whoever was woken and took the message has
put a turn there, in the same step: the one who gets it waits for messages again. The script says
what was taken: where that was a plain worker, nobody is given a turn, and all go on waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from celery_budgets.worker.transport.line import Line
from celery_budgets.worker.transport.scripts import TURNS

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
        #: The list whose message has ended a wait since the last fetch, and that message.
        self._woken: tuple[str, bytes] = ("", b"")
        self._too_late = False

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
                channel.handlers[line.kind] = partial(self._on_reply, name, line)
            if not line.waits:
                self._send(line, channel.key(name), channel.brpop_timeout or 1)
        self._too_late = False

    def _send(self, line: Line, key: str, seconds: float) -> None:
        if self._too_late:
            line.send(("BRPOP", key + TURNS, seconds))
        else:
            line.send(("BLMOVE", key, key, "RIGHT", "RIGHT", seconds))

    def _on_reply(self, name: str, line: Line) -> bool:
        """There is a message, or a turn, or it is time to look where no line waits."""
        if not line.was_closed():
            reply = line.receive()
            if isinstance(reply, bytes):  # else there is none, or it is a turn
                self._woken = name, reply
            self.complete = False
            self._look()
        return False

    def woken_by(self, names: list[str]) -> int:
        """Return the place among *names*, from 1, of the list that has woken the worker, or 0."""
        name = self._woken[0]
        return names.index(name) + 1 if name in names else 0

    def end_fetch(self, taken: bytes | None) -> None:
        """Note that a fetch has looked.

        Args:
            taken: The tag of what another worker has taken that was woken too; else ``None``.
        """
        self._too_late = bool(taken and taken in self._woken[1])
        self._woken = "", b""
