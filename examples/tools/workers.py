"""The workers of the job: one per lane, under the supervisor of ``celery lanes up``.

The supervisor would start a worker again that ends; here that is an error, which the job
reports with the end of the worker's log.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from celery_budgets.cli.supervised import Backoff
from celery_budgets.cli.supervisor import Supervisor
from celery_budgets.model.lanes import Lane

__all__ = ["LaneWorkers", "WorkerFailed"]

APP = "examples.tools.app"
#: Seconds in which all workers must take calls.
START_SECONDS = 60.0
#: Seconds that the workers have to stop. Running calls need 1.5 at the most, but billiard may
#: wait half a minute for a result that nobody reads any more.
WARM_SECONDS = 3.0
TAIL_LINES = 20


class WorkerFailed(Exception):
    """A worker ended that should run; the message has the end of its log."""


class LaneWorkers:
    """One worker per lane, each with its output in a file, run by a thread.

    Args:
        lanes: The lanes.
        logs: Directory of the log files, ``LANE.log``.
    """

    def __init__(self, lanes: Iterable[Lane], logs: Path) -> None:
        self.logs = logs
        #: Lanes whose worker takes calls.
        self.ready: set[str] = set()
        commands = {lane.name: _command(lane) for lane in lanes}
        self._files = {name: self._log(name).open("w", encoding="utf-8") for name in commands}
        names = iter(commands)
        self._supervisor = Supervisor(
            commands, say=self._say, backoff=lambda: _NoSecondStart(next(names))
        )
        self._failure: Exception | None = None
        self._started_at = time.monotonic()
        # Not Thread.join: interrupted by Ctrl-C, it takes a running thread for ended (3.11).
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self._files)

    def start(self) -> None:
        """Start the workers; they are not ready yet when this returns."""
        self._started_at = time.monotonic()
        self._thread.start()

    def check(self) -> None:
        """Do nothing while all workers run, or still have time to start.

        Raises:
            WorkerFailed: One of them has ended, or is not ready in time.
        """
        if isinstance(self._failure, _Ended):
            lane, seconds = self._failure.args
            raise WorkerFailed(
                f"the worker of lane {lane!r} ended after {seconds:.1f} s\n{self.tail(lane)}"
            )
        if self._failure is not None:
            raise self._failure
        late = [lane for lane in self._files if lane not in self.ready]
        if late and time.monotonic() > self._started_at + START_SECONDS:
            raise WorkerFailed(
                f"not ready after {START_SECONDS:g} s: the workers of {', '.join(late)}\n"
                f"{self.tail(*late)}"
            )

    def tail(self, *lanes: str) -> str:
        """Return the end of the logs of *lanes*, each under the name of its file."""
        parts = []
        for lane in lanes:
            lines = self._log(lane).read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
            parts.append("\n".join([f"{self._log(lane)}:", *(f"  {line}" for line in lines)]))
        return "\n".join(parts)

    def stop(self) -> None:
        """Stop all workers, warmly if they can, and wait for their end."""
        if self._thread.ident is not None:
            self._supervisor.stop()
            # A second Ctrl-C: no more waiting.
            with contextlib.suppress(KeyboardInterrupt):
                self._ended.wait(WARM_SECONDS)
            if not self._ended.is_set():
                self._supervisor.stop()
            while not self._ended.is_set():
                # Being killed takes no time worth an interruption.
                with contextlib.suppress(KeyboardInterrupt):
                    self._ended.wait()
        for file in self._files.values():
            file.close()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except Exception as exc:
            self._failure = exc
        finally:
            self._ended.set()

    def _say(self, lane: str, line: str) -> None:
        file: IO[str] | None = self._files.get(lane)
        if file is None:
            return
        file.write(line + "\n")
        file.flush()
        if line.endswith(" ready."):
            self.ready.add(lane)

    def _log(self, lane: str) -> Path:
        return self.logs / f"{lane}.log"


class _Ended(Exception):
    """The worker of a lane has ended, after some seconds."""


class _NoSecondStart(Backoff):
    """Asked for the pause before the next start, it ends the supervisor instead."""

    def __init__(self, lane: str) -> None:
        super().__init__()
        self.lane = lane

    def pause(self, lived: float) -> float:
        raise _Ended(self.lane, lived)


def _command(lane: Lane) -> list[str]:
    return [
        *(sys.executable, "-m", "celery", "-A", APP, "worker", "-Q", lane.queue),
        *("-n", f"{lane.name}@%h", "-l", "INFO"),
        # Each worker would wait a second for the others' greetings, which nobody needs here.
        *("--without-mingle", "--without-gossip"),
    ]
