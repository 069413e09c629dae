"""Workers that are forked off a process which has imported Celery already."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.places import ROOT

__all__ = ["ForkedProcess", "WorkerServer", "can_fork", "worker_server"]

_SERVER = Path(__file__).with_name("worker_server.py")
#: Variables that act while an interpreter starts, or while a module is imported.
_EARLY = ("CELERY_", "C_", "KOMBU_", "LD_", "MALLOC_", "OTEL_", "PYTHON")
#: They patch the standard library, and so come before any other import.
_PATCHING = frozenset({"gevent", "eventlet"})


def can_fork(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a worker started so differs in nothing from a program of its own.

    Args:
        arguments: Those of ``celery worker``.
        environment: The variables that its test adds.
    """
    return _PATCHING.isdisjoint(arguments) and not any(
        name.startswith(_EARLY) for name in environment
    )


class WorkerServer:
    """The process that forks; it and all of its workers end with this one, by SIGKILL."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_SERVER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self._answers = self._ours.makefile("rb")
        self._lock = threading.Lock()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> ForkedProcess:
        """Start a program of *arguments*, its name first; *output* takes what it prints."""
        output.touch()  # whoever reads it need not wait for the program
        exit_file = output.with_suffix(".exit")
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "output": str(output),
            "exit": str(exit_file),
        }
        with self._lock:
            self._ours.sendall(json.dumps(request).encode() + b"\n")
            answer = self._answers.readline()
        assert answer, f"the server of workers has ended: {self._process.poll()}"
        return ForkedProcess(int(answer), list(arguments), exit_file)

    def close(self) -> None:
        """End it with all of its workers."""
        self._answers.close()
        self._ours.close()
        self._process.wait()


class ForkedProcess:
    """One program that the server has forked: as a BoundProcess of the package.

    Args:
        pid: Its process.
        args: Its name and arguments.
        exit_file: Where its exit code will be.
    """

    def __init__(self, pid: int, args: Sequence[str], exit_file: Path) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._exit_file = exit_file
        self._group_ended = False

    def poll(self) -> int | None:
        """Return its exit code, ``-n`` where signal *n* has ended it; ``None`` while it runs."""
        if self.returncode is None and self._exit_file.exists():
            self.returncode = int(self._exit_file.read_text(encoding="ascii"))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended; raise ``TimeoutExpired`` after *timeout* s."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def end(self, *, grace: float, how: signal.Signals = signal.SIGTERM) -> bool:
        """Signal it to end, and kill its group where it does not; whether it ended by itself."""
        self.send_signal(how)
        try:
            self.wait(grace)
            warm = True
        except subprocess.TimeoutExpired:
            warm = False
        self.end_group()
        return warm

    def end_group(self) -> None:
        """Kill the rest of its process group. May be called again."""
        if not self._group_ended:
            self._group_ended = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()


#: The server of this process, started with the first worker.
worker_server = functools.cache(WorkerServer)
