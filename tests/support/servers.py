"""Servers of Redis that a test starts, kills and starts again."""

from __future__ import annotations

import signal
import socket

from redis import Redis
from redis.exceptions import RedisError

from celery_budgets import embedded
from celery_budgets.child_process import BoundProcess
from tests.support.waiting import wait_until


class Server:
    """A server of Redis on a port that it keeps when it is started anew."""

    def __init__(self, directory, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._directory, self._arguments = directory, arguments
        self.start()

    def start(self):
        """Start it, on its port, and wait until it answers."""
        with (self._directory / f"{self.port}.log").open("ab") as output:
            self.process = BoundProcess(
                [embedded.find_server(), *self._arguments, "--port", str(self.port),
                 "--bind", "127.0.0.1", "--dir", str(self._directory)],
                parting=signal.SIGKILL, environment={}, output=output,
            )  # fmt: skip
        self.client = Redis(port=self.port)
        wait_until(self._answers, "it answers")

    def _answers(self):
        try:
            return self.client.ping()
        except RedisError:
            return False

    @property
    def url(self):
        """Its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def kill(self):
        """End it at once, as a crash does; :meth:`start` starts it again."""
        self.client.close()
        self.process.end(grace=10, how=signal.SIGKILL)

    def end(self):
        """Stop it."""
        self.client.close()
        self.process.end(grace=1)
