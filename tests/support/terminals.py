"""A worker on a terminal of its own, which can hang up."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading

from tests.support.apps import Servers
from tests.support.places import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import CELERY, READY_SECONDS, WARM_SECONDS


class WorkerOnTerminal:
    """A real ``celery worker`` in a session of its own, whose terminal somebody reads.

    Args:
        servers: What it is connected to.
        app: Module of the app.
        arguments: Further arguments of ``celery worker``.
    """

    def __init__(self, servers: Servers, app: str, *arguments: str) -> None:
        self._terminal, other = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, str(CELERY), "-A", app, "worker", "-l", "INFO", "--without-mingle",
             *arguments],
            stdin=other, stdout=other, stderr=other, start_new_session=True,
            env=os.environ | servers.environment | {"PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self._printed = b""
        self._hangs_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Read what it prints: it would wait for that. Never in a read while it hangs up."""
        while not self._hangs_up.is_set():
            if select.select([self._terminal], [], [], 0.05)[0]:
                try:
                    self._printed += os.read(self._terminal, 65536)
                except OSError:  # it has ended
                    break
        os.close(self._terminal)

    def wait_ready(self) -> WorkerOnTerminal:
        """Wait until it takes calls."""
        wait_until(
            lambda: b" ready." in self._printed, "the worker is ready", timeout=READY_SECONDS,
            detail=self.tail,
        )  # fmt: skip
        return self

    def hang_up(self) -> None:
        """Close its terminal."""
        self._hangs_up.set()
        self._reader.join()

    def wait_exit(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        return self._process.wait(WARM_SECONDS)

    def tail(self) -> str:
        """The end of what it has printed, for the message of a failure."""
        return self._printed.decode(errors="replace")[-4000:]

    def close(self) -> None:
        """End it, where it has not ended."""
        self.hang_up()
        self._process.kill()
        self._process.wait()
