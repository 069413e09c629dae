"""Real workers: started, watched and stopped.

See also: ``tests/conftest.py``, which hands these out as fixtures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from celery.utils.nodenames import gethostname
from redis.exceptions import RedisError

from celery_budgets.child_process import BoundProcess
from tests.support.apps import Servers
from tests.support.forked import ForkedProcess, can_fork, worker_server
from tests.support.places import ROOT
from tests.support.waiting import wait_until

CELERY = Path(__file__).with_name("celery_command.py")
READY_SECONDS = 30.0
#: Set: each worker is a program of its own.
ALL_FRESH = "BUDGETS_TEST_FRESH" in os.environ
#: A pool process may wait 30 s for a worker that has stopped reading (billiard,
#: Worker._ensure_messages_consumed): rare, and plain Celery's.
WARM_SECONDS = 45.0


class RunningWorker:
    """A real ``celery worker`` of its own process group, its output in a file.

    Args:
        app: Module of the app, such as ``"tests.worker.basic_app"``.
        arguments: Further arguments of ``celery worker``.
        environment: All of its environment.
        log_path: The file that takes its output.
        servers: What it is connected to.
        forked: Whether it is spared the imports of Celery (:mod:`tests.support.forked`).
    """

    def __init__(
        self,
        app: str,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        log_path: Path,
        servers: Servers,
        *,
        forked: bool = False,
    ) -> None:
        self.name = f"w{uuid.uuid4().hex[:8]}"
        self.log_path = log_path
        self.servers = servers
        #: May the safety net below its slots have to act? Only where a test loses a call.
        self.may_lose_calls = False
        self.command = [
            *(sys.executable, str(CELERY), "-A", app, "worker"),
            # Mingling waits a second for workers that a test does not have.
            *("-n", f"{self.name}@%h", "-l", "INFO", "--without-mingle", *arguments),
        ]  # fmt: skip
        self.process: BoundProcess | ForkedProcess
        if forked:
            self.process = worker_server().start(self.command[1:], environment, log_path)
            return
        with log_path.open("wb") as output:
            self.process = BoundProcess(
                self.command,
                parting=signal.SIGKILL,
                environment=environment,
                output=output,
            )

    @property
    def pid(self) -> int:
        """Process id of the worker main process."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; ``None`` while it runs."""
        return self.process.poll()

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 40) -> str:
        """The end of its log, for the message of a failure."""
        last = "\n".join(self.log.splitlines()[-lines:])
        return f"$ {' '.join(self.command)}\n(exit code {self.returncode})\n{last}"

    def pool_pids(self) -> list[int]:
        """Process ids of its living children."""
        try:
            children = psutil.Process(self.pid).children()
            return [c.pid for c in children if c.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def wait_ready(self, timeout: float = READY_SECONDS) -> RunningWorker:
        """Wait until it takes calls and answers to remote control; fail at once where it exits."""
        self.wait_for_log(f"{self.name}@", " ready.", timeout=timeout)
        # Its mailbox is bound, or subscribed to, after it says that it is ready. Solo answers
        # between its calls, and what a Sentinel calls its primary is known to the app alone.
        if "solo" not in self.command and not self.servers.broker.startswith("sentinel"):
            wait_until(self._answers, "it answers", timeout=timeout, detail=self.tail)
        return self

    def _answers(self) -> bool:
        try:
            return self._asked("ping") is not None
        except (OSError, RedisError):  # a pooled connection that a test has cut
            return False

    def _asked(self, question: str) -> Any:
        """What it answers to a question of ``celery inspect``; ``None`` where it does not."""
        node = f"{self.name}@{gethostname()}"
        with Celery(set_as_current=False) as app:
            # Not broker_url: the environment, which is that of other servers perhaps, precedes it.
            app.conf.broker_read_url = app.conf.broker_write_url = self.servers.broker
            inspect = app.control.inspect([node], timeout=1.0, limit=1)
            return (getattr(inspect, question)() or {}).get(node)

    def wait_active(self, count: int = 1, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Wait until it has heard of *count* calls that run; return what it says of them.

        A call that it has received and even one whose body runs may not be: its process tells
        so by a pipe. A stop then, or a lost connection, hands such a call back.
        """

        def active() -> list[dict[str, Any]] | None:
            calls = self._asked("active") or []
            return calls if len(calls) >= count else None

        calls = wait_until(active, f"{count} run", timeout=timeout, detail=self.tail)
        assert calls is not None
        return calls

    def wait_for_log(self, *texts: str, timeout: float = 10.0) -> str:
        """Wait until one line of its log has all *texts*, and return that line."""

        def found() -> str | None:
            lines = (line for line in self.log.splitlines() if all(t in line for t in texts))
            line = next(lines, None)
            if line is None and self.returncode is not None:
                raise AssertionError(f"the worker ended before it said {texts}\n{self.tail()}")
            return line

        line = wait_until(found, f"{texts} in the worker's log", timeout=timeout, detail=self.tail)
        assert line is not None
        return line

    def wait_exit(self, timeout: float = WARM_SECONDS) -> int:
        """Wait until it ends by itself, and return its exit code."""
        wait_until(
            lambda: self.returncode is not None,
            "the worker ends",
            timeout=timeout,
            detail=self.tail,
        )
        self.process.end_group()
        assert self.returncode is not None
        return self.returncode

    def stop(self, timeout: float = WARM_SECONDS) -> int:
        """Stop it warmly, and return its exit code; kill it and fail where it does not stop."""
        warm = self.process.end(grace=timeout)
        assert warm, f"no warm stop within {timeout:g} s; it was killed\n{self.tail()}"
        assert self.returncode is not None
        return self.returncode

    def retire(self) -> None:
        """Ask it to stop warmly, and do not wait: whoever started it does, in the end."""
        if self.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        """Kill its whole process group."""
        self.process.end_group()


class Workers:
    """Starts workers for one test, and stops them at its end: call it like a function."""

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers = servers
        self._directory = directory
        self._started: list[RunningWorker] = []

    def __call__(
        self,
        app: str,
        *arguments: str,
        ready: bool = True,
        fresh: bool = False,
        env: dict[str, str] | None = None,
        servers: Servers | None = None,
    ) -> RunningWorker:
        """Start ``celery -A app worker ARGUMENTS``.

        Args:
            app: Module of the app.
            arguments: Such as ``"-Q", "file_read"``.
            ready: Wait until it takes calls; ``False`` for one that must not start.
            fresh: As a program of its own, whatever it costs.
            env: Environment variables over those of this process.
            servers: Servers of its own, where it is not to share those of the others.
        """
        servers = servers or self._servers
        environment = os.environ | servers.environment | {"PYTHONPATH": str(ROOT)}
        log_path = self._directory / f"worker-{len(self._started)}.log"
        forked = not (fresh or ALL_FRESH) and can_fork(arguments, env or {})
        environment |= env or {}
        worker = RunningWorker(app, arguments, environment, log_path, servers, forked=forked)
        self._started.append(worker)
        return worker.wait_ready() if ready else worker

    def close(self) -> None:
        """Stop all at once, warmly; fail, after all have ended, where one had to be killed."""
        self.leave()
        leaving.see_off(self._servers.broker)

    def leave(self) -> None:
        """Ask all to stop, and do not wait: nobody else uses their queues until they are gone."""
        for worker in self._started:
            leaving.take(worker)
        self._started.clear()


class Leaving:
    """Workers of tests that are over, on their way out."""

    def __init__(self) -> None:
        self._workers: list[RunningWorker] = []

    def take(self, worker: RunningWorker) -> None:
        """Ask *worker* to stop; it has until :meth:`see_off`."""
        worker.retire()
        self._workers.append(worker)

    def see_off(self, broker: str | None = None) -> None:
        """Wait until they have ended; fail, after all have, where one had to be killed.

        Args:
            broker: Wait only for those that are connected to this one.
        """
        late, lost = [], []
        for worker in list(self._workers):
            if worker.returncode is None and broker in (None, worker.servers.broker):
                try:
                    worker.process.wait(WARM_SECONDS)
                except subprocess.TimeoutExpired:
                    late.append(worker)
                    worker.kill()
            if worker.returncode is not None:
                worker.process.end_group()
                self._workers.remove(worker)
                if "budgets.slot_recovered" in worker.log and not worker.may_lose_calls:
                    lost.append(worker)
        assert not lost, "calls were lost:\n" + "\n".join(worker.log for worker in lost)
        assert not late, "no warm stop:\n" + "\n".join(worker.tail() for worker in late)


#: Those of this session.
leaving = Leaving()
