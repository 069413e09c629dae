"""The ground that benchmarks stand on: the embedded server, real workers, calls to send them."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil
from celery import Celery
from redis import Redis

from celery_budgets.embedded import EmbeddedBroker
from tests.support.apps import Servers
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker, Workers

APP = "tests.benchmarks.calls_app"
_DATABASES = 512


class Ground:
    """One run's server and workers; all end with it.

    Args:
        quick: Only prove that the benchmark works: few calls, one round.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.directory = Path(self._stack.enter_context(TemporaryDirectory(prefix="benchmarks-")))
        self._server = self._stack.enter_context(EmbeddedBroker(databases=_DATABASES))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def url(self) -> str:
        """Return the address of a database that nobody has used."""
        return self._server.url(next(self._numbers) % _DATABASES)

    def amount(self, full: int, quick: int) -> int:
        """Return how many: *full*, or *quick* in a quick run."""
        return quick if self.quick else full

    def workplace(self, broker: str | None = None, **environment: str) -> Workplace:
        """Return a place with a database of its own.

        Args:
            broker: Where its messages go, if not there.
            environment: Variables of its workers, such as ``WAY="plain"``.
        """
        directory = self.directory / f"place-{next(self._numbers)}"
        place = Workplace(self.url(), directory, environment, broker)
        self._stack.callback(place.close)
        return place


class Workplace:
    """A database and the workers on it."""

    def __init__(
        self, url: str, directory: Path, environment: dict[str, str], broker: str | None = None
    ) -> None:
        directory.mkdir()
        broker = broker or url
        self.url = url
        self.redis: Redis = Redis.from_url(url, decode_responses=True)
        self.sender = Celery("sender", broker=broker, backend=url, set_as_current=False)
        self.sender.conf.task_create_missing_queues = True
        self._workers = Workers(Servers(broker, url), directory)
        self._environment = environment
        self.running: list[RunningWorker] = []

    def worker(self, *arguments: str, app: str = APP, **environment: str) -> RunningWorker:
        """Start a worker that logs warnings only, and wait until it takes calls."""
        started = self._workers(
            app, "-l", "WARNING", *arguments, ready=False, env=self._environment | environment
        )
        self.running.append(started)
        wait_until(
            lambda: self.redis.exists(f"ready:{started.name}") or started.returncode is not None,
            "the worker is ready", timeout=60, detail=started.tail,
        )  # fmt: skip
        assert started.returncode is None, started.tail()
        return started

    def send(self, task: str, *args: Any, queue: str = "lane") -> str:
        """Send one call, stamped as budgets would, and return its id."""
        headers = {"budgets_due_at": time.time()}
        # Else the sender listens for its result, and looks for the server when it is gone.
        sent = self.sender.send_task(task, args, queue=queue, headers=headers, ignore_result=True)
        return str(sent.id)

    def failure(self, task_id: str) -> dict[str, Any] | None:
        """Return what the result backend has of a call that has failed, else ``None``."""
        meta: dict[str, Any] = self.sender.backend.get_task_meta(task_id)
        return meta if meta["status"] == "FAILURE" else None

    def times(self, key: str) -> list[float]:
        """Return the numbers that calls have left in the list *key*."""
        return [float(value) for value in self.redis.lrange(key, 0, -1)]

    def wait_for_times(self, key: str, count: int, timeout: float = 60.0) -> list[float]:
        """Wait until there are *count* of them."""
        wait_until(
            lambda: self.redis.llen(key) >= count, f"{count} numbers in {key}", timeout=timeout,
            detail=lambda: "\n".join(worker.tail(15) for worker in self.running),
        )  # fmt: skip
        return self.times(key)

    def close(self) -> None:
        """Kill its workers: what they still have in hand is of no interest."""
        for worker in self.running:
            worker.kill()
        self.running.clear()
        self.sender.close()
        self.redis.close()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of process *pid* so far, seconds.

    From ``schedstat``, in nanoseconds, where the kernel has it; else in clock ticks.
    """
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                total += int((thread / "schedstat").read_text().split()[0])
    except OSError:
        total = 0
    if total:
        return total / 1e9
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
