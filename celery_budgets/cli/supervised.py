"""One supervised worker and its restarts: its output, its exit, the pause before a restart.

See also: :mod:`celery_budgets.cli.supervisor`, the loop around several of these.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from celery_budgets.child_process import PARTING_SECONDS, BoundProcess
from celery_budgets.units import format_duration
from celery_budgets.worker.startup.readiness import READY_FILE, SYSTEMD

__all__ = ["Backoff", "Say", "Supervised", "describe"]

#: A worker that exits with code 1 within this many seconds has refused to start.
REFUSAL_SECONDS = 10.0
#: Bytes after which an unfinished line is printed.
LONGEST_LINE = 64 * 1024

#: Prints a line; takes the name of its lane (empty for the supervisor itself) and the line.
Say = Callable[[str, str], None]


class Backoff:
    """Exponential backoff between restarts: doubled from *first* to *longest* seconds.

    Args:
        first: The first pause, seconds.
        longest: The longest pause, seconds.
        reset_after: After a worker has run this long, seconds, the pause is *first* again.
    """

    def __init__(
        self, first: float = 1.0, longest: float = 30.0, reset_after: float = 60.0
    ) -> None:
        self.first = first
        self.longest = longest
        self.reset_after = reset_after
        self.failures = 0

    def pause(self, lived: float) -> float:
        """Return the pause, seconds, after a worker that ran for *lived* seconds."""
        if lived >= self.reset_after:
            self.failures = 0
        self.failures += 1
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError after a day of failures.
        return float(min(self.first * 2.0 ** min(self.failures - 1, 60), self.longest))


class Supervised:
    """One worker of the supervisor, with its restarts.

    Args:
        name: Name of the lane, for the output.
        command: The worker's command.
        say: Prints a line of a lane.
        backoff: The pauses between restarts.
        environment: Environment of the worker; ``None``: that of this process.
        longest_call: Seconds that a warm shutdown may take.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        say: Say,
        backoff: Backoff,
        environment: dict[str, str] | None = None,
        longest_call: float | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.process: BoundProcess | None = None
        self.starts_at = time.monotonic()
        self._say = say
        self._backoff = backoff
        self._environment = environment
        self._parting_seconds = PARTING_SECONDS + math.ceil(longest_call or 0.0)
        self.started_at = self.starts_at
        self._rest = b""
        self._error = ""
        self._ready_file = ""
        #: How often it was started again.
        self.restarts = 0

    def is_ready(self) -> bool:
        """Return whether it has said that it takes calls."""
        return os.path.exists(self._ready_file)

    def start(self, ready_folder: str) -> int:
        """Start the worker, and return the file descriptor of its output.

        Args:
            ready_folder: Where it is to make a file when it takes calls.
        """
        self._ready_file = os.path.join(ready_folder, uuid4().hex)
        environment = dict(os.environ if self._environment is None else self._environment)
        # systemd is told by the supervisor, when all workers are ready.
        environment.pop(SYSTEMD, None)
        self.process = BoundProcess(
            self.command,
            # After our own death it ends its calls first, as if we had stopped it.
            parting=signal.SIGTERM,
            parting_seconds=self._parting_seconds,
            environment=environment | {READY_FILE: self._ready_file},
            output=subprocess.PIPE,
        )
        self.started_at = time.monotonic()
        self._rest = b""
        self._error = ""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        return self.process.stdout.fileno()

    def read(self) -> bool:
        """Print the lines that the worker has written; return whether there may be more."""
        assert self.process is not None
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), LONGEST_LINE)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text.startswith("Error: "):
                self._error = text
            self._say(self.name, text)
        return bool(data)

    def ended(self) -> int:
        """Clean up after the worker has ended, and return its exit code."""
        assert self.process is not None
        self.process.end_group()
        try:
            while self.read():
                pass
        except BlockingIOError:
            pass  # a process outside the worker's group still holds the pipe
        assert self.process.stdout is not None
        self.process.stdout.close()
        code = self.process.wait()
        self.process = None
        return code

    def plan_restart(self, code: int) -> None:
        """Print how the worker ended, and schedule its next start."""
        pause = self._backoff.pause(time.monotonic() - self.started_at)
        self.restarts += 1
        self.starts_at = time.monotonic() + pause
        again = f"starts again in {format_duration(pause)} (attempt {self._backoff.failures + 1})"
        self._say(self.name, f"worker {self.how_it_ended(code)}; {again}")

    def how_it_ended(self, code: int) -> str:
        """Return how the worker, which has just ended with *code*, did so."""
        lived = time.monotonic() - self.started_at
        if code == 1 and lived < REFUSAL_SECONDS:
            return f"refused to start ({self._error or 'exit code 1'})"
        return f"{describe(code)} after {format_duration(round(lived, 1))}"


def describe(code: int) -> str:
    """Return how a process ended, from its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"
