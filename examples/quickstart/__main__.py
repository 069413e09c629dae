"""Runs the quickstart on a server of its own: a worker, two calls, what they cost."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from celery.result import AsyncResult

from celery_budgets.child_process import BoundProcess
from celery_budgets.embedded import EmbeddedBroker
from celery_budgets.errors import NoServerError
from examples.quickstart.tasks import budgets, fs_read, longest_line

WORKER = ["celery", "-A", "examples.quickstart.tasks", "worker", "-Q", "file_read"]
#: Seconds that a call may take, the start of the worker included.
PATIENCE = 60.0


def main() -> int:
    """Run it, and return the exit code."""
    try:
        with EmbeddedBroker() as broker, tempfile.TemporaryFile("w+") as log:
            # Celery prefers these to the addresses in the program.
            os.environ["CELERY_BROKER_URL"] = broker.url(0)
            os.environ["CELERY_RESULT_BACKEND"] = broker.url(1)
            print("$", *WORKER)
            worker = BoundProcess([sys.executable, "-m", *WORKER], output=log)
            try:
                call_both(worker)
            except (ChildProcessError, TimeoutError) as exc:
                log.seek(0)
                print(f"{exc}; its output:\n{log.read()}", file=sys.stderr)
                return 1
            finally:
                worker.end(grace=10.0)
    except NoServerError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; worker and server have ended")
        return 130
    return 0


def call_both(worker: BoundProcess) -> None:
    """Call both tools, print what they return, and what the worker has counted."""
    path = str(Path(__file__).with_name("tasks.py"))
    for tool in (fs_read, longest_line):
        print(f">>> {tool.__name__}.delay('tasks.py').get()")
        print(repr(result_of(tool.delay(path), worker)))
    calls = budgets.statistics().lanes["file_read"]
    counted = ", ".join(f"{count} {outcome}" for outcome, count in calls.outcomes.items())
    print(f"lane file_read: {counted}, the longest call took {calls.duration.maximum:.3f} s")


def result_of(result: AsyncResult, worker: BoundProcess) -> object:
    """Return what the call returns.

    Raises:
        ChildProcessError: The worker has ended.
        TimeoutError: The call has not ended in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not result.ready():
        if worker.poll() is not None:
            raise ChildProcessError(f"the worker ended with exit code {worker.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the worker has not answered for {PATIENCE:g} s")
        time.sleep(0.05)
    return result.get()


if __name__ == "__main__":
    sys.exit(main())
