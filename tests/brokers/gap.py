"""SIGKILL at a random moment, but for one: while Redis has handed out a message that nobody notes.

kombu takes a message from its queue (BRPOP) and notes that it is unacknowledged in two steps
(kombu.transport.redis.Channel._brpop_read, QoS.append). A worker that is killed in between has lost
it, with budgets as without: some 100 us per message, which 20 kills meet now and then.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psutil
from kombu.transport.redis import Channel
from redis import Redis

from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker


def note_polls(folder: str) -> None:
    """Keep a file in *folder*, named by the pid: how many replies of Redis this worker awaits."""
    channels: WeakSet[Any] = WeakSet()
    note = os.open(Path(folder, str(os.getpid())), os.O_CREAT | os.O_WRONLY)

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            channels.add(self)
            try:
                return method(self, *args, **kwargs)
            finally:
                os.pwrite(note, b"%3d" % sum(bool(each._in_poll) for each in channels), 0)

        return call

    Channel._brpop_start = noted(Channel._brpop_start)
    Channel._brpop_read = noted(Channel._brpop_read)


def kill_outside(
    victim: RunningWorker, running: Sequence[RunningWorker], broker: str, folder: Path
) -> None:
    """Kill *victim* at once, or as soon as no message is in that gap.

    Args:
        victim: One of *running*.
        running: All workers of this broker.
        broker: Its address; on RabbitMQ there is no gap.
        folder: Where they note their polls.
    """
    if not broker.startswith("redis"):
        victim.kill()
        return

    def killed() -> bool:
        for each in running:
            os.kill(each.pid, signal.SIGSTOP)
        try:
            for each in running:
                wait_until(
                    lambda pid=each.pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED,
                    "it stands still", interval=0.001,
                )  # fmt: skip
            if _replies_wait(running, broker, folder):
                return False
            victim.kill()
            return True
        finally:
            for each in running:
                if each.returncode is None:
                    os.kill(each.pid, signal.SIGCONT)

    wait_until(killed, "no message is in the gap")


def _replies_wait(running: Sequence[RunningWorker], broker: str, folder: Path) -> bool:
    """Say whether workers await a reply that Redis has sent: it keeps the client no more."""
    awaited = sum(int(Path(folder, str(each.pid)).read_text() or 0) for each in running)
    with Redis.from_url(broker) as redis:
        database = str(redis.connection_pool.connection_kwargs["db"])
        clients = redis.client_list()
    kept = sum("b" in client["flags"] and client["db"] == database for client in clients)
    return awaited != kept
