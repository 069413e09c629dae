"""Forks workers off a process that has imported Celery: each start is spared the imports.

A start of ``celery worker`` is a second and a half of CPU, of which nearly all is imports, and the
suite starts some hundred workers. The process of the tests talks to this one by a socket: a line
of JSON asks for a worker, a line with its process id answers. Where the socket closes, all end.

The package under test is imported by the workers themselves. What a test sets that acts while other
modules are imported, as of OpenTelemetry, makes its worker a program of its own
(:func:`tests.support.forked.can_fork`).

Run as a program by its path, so that nothing is imported before it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

_MODULES = (
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.app.trace",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.asynpool",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
)


class Server:
    """Forks a worker per request, and writes down how each has ended.

    Args:
        requests: The socket to the process of the tests.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._lines = requests.makefile("rb")
        #: By the process of a worker, the file that is to have its exit code.
        self._exits: dict[int, Path] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """Return a request in the process that is to be its worker; ``None`` at the end, here."""
        while True:
            ready, _, _ = select.select([self._requests, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._note_exits()
            if self._requests not in ready:
                continue
            line = self._lines.readline()
            if not line:
                self._end_all()
                return None
            request: dict[str, Any] = json.loads(line)
            pid = self._fork()
            if not pid:
                return request
            self._exits[pid] = Path(request["exit"])
            self._requests.sendall(b"%d\n" % pid)

    def _fork(self) -> int:
        """Return 0 in the new process, and here its id once it leads a group of its own."""
        here, there = os.pipe()
        pid = os.fork()
        if pid:
            os.close(there)
            os.read(here, 1)
        else:
            os.setsid()
            os.close(there)
            self._leave()
        os.close(here)
        return pid

    def _note_exits(self) -> None:
        while self._exits:
            # Noted before its number is free for another process.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            file = self._exits.pop(ended.si_pid)
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            part = file.with_suffix(".part")
            part.write_text(str(code), encoding="ascii")
            part.replace(file)
            os.waitpid(ended.si_pid, 0)

    def _leave(self) -> None:
        """Keep nothing of the server in the process of a worker."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._woken)
        os.close(self._wake)
        self._lines.close()
        self._requests.close()

    def _end_all(self) -> None:
        for pid in self._exits:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def become(request: dict[str, Any]) -> None:
    """Make this process look as if *request* had been started as a program."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in (nothing, 0), (output, 1), (output, 2):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv[:] = request["arguments"]


def import_celery() -> None:
    """Import what each worker would."""
    for name in _MODULES:
        importlib.import_module(name)


if __name__ == "__main__":
    # The folder of this file: its modules are those of ``tests.support``.
    del sys.path[0]
    from tests.support.celery_command import hide_flower

    hide_flower()
    import_celery()
    wanted = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if wanted is not None:
        become(wanted)
        from celery.__main__ import main

        main()
