"""The workers of the job: one per lane, under the supervisor of ``celery lanes up``.

The supervisor would start a worker again that ends; here that is an error, which the job
reports with the end of the worker's log.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from celery_budgets.cli.supervisor import Backoff, Supervisor
from celery_budgets.lanes import Lane

__all__ = ["LaneWorkers", "WorkerFailed"]

APP = "examples.tools.app"
#: Seconds that running calls have when the workers are asked to stop.
WARM_SECONDS = 8.0
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
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self._files)

    def start(self) -> None:
        """Start the workers; they are not ready yet when this returns."""
        self._thread.start()

    def check(self) -> None:
        """Do nothing while all workers run.

        Raises:
            WorkerFailed: One of them has ended.
        """
        if isinstance(self._failure, _Ended):
            lane, seconds = self._failure.args
            raise WorkerFailed(
                f"the worker of lane {lane!r} ended after {seconds:.1f} s\n{self.tail(lane)}"
            )
        if self._failure is not None:
            raise self._failure

    def tail(self, *lanes: str) -> str:
        """Return the end of the logs of *lanes*, each under the name of its file."""
        parts = []
        for lane in lanes:
            lines = self._log(lane).read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
            parts.append("\n".join([f"{self._log(lane)}:", *(f"  {line}" for line in lines)]))
        return "\n".join(parts)

    def stop(self) -> None:
        """Stop all workers, warmly if they can, and wait for their end."""
        self._supervisor.stop()
        if self._thread.ident is None:
            return
        # A second Ctrl-C: no more waiting.
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.join(WARM_SECONDS)
        if self._thread.is_alive():
            self._supervisor.stop()
            self._thread.join()
        for file in self._files.values():
            file.close()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except Exception as exc:
            self._failure = exc

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
