"""How each peer is started, given calls, and asked how they ended."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Protocol

from celery_budgets.child_process import BoundProcess
from tests.benchmarks import peer_bodies
from tests.benchmarks.ground import Workplace
from tests.support.places import ROOT

__all__ = ["PEERS", "Peer"]


class Peer(Protocol):
    """One system on one workplace."""

    def __init__(self, place: Workplace, directory: Path) -> None: ...

    def start(self, slots: int) -> None:
        """Start its workers, with *slots* processes that run calls."""

    def send(self, name: str, *args: Any) -> Any:
        """Send one call; return what :meth:`ended` knows it by."""

    def ended(self, handle: Any) -> str:
        """Return how a call ended, as its caller is told; empty while nobody tells."""

    def stop(self) -> None:
        """Kill its workers."""


class Budgets:
    """This package."""

    def __init__(self, place: Workplace, directory: Path) -> None:
        self._place = place

    def start(self, slots: int) -> None:
        app = "tests.benchmarks.peer_celery_app"
        self._place.worker("-c", str(slots), app=app, REDIS=self._place.url)

    def send(self, name: str, *args: Any) -> Any:
        return self._place.send(name, *args)

    def ended(self, handle: Any) -> str:
        failure = self._place.failure(handle)
        return type(failure["result"]).__name__ if failure else ""

    def stop(self) -> None:
        self._place.running[0].kill()


class _Started:
    """A peer whose workers are started by a command."""

    def __init__(self, place: Workplace, directory: Path) -> None:
        self._place = place
        self._directory = directory
        self._process: BoundProcess | None = None

    def _start(self, *command: str, **environment: str) -> None:
        everything = os.environ | {"REDIS": self._place.url, "PYTHONPATH": str(ROOT)} | environment
        with (self._directory / "peer.log").open("ab") as output:
            self._process = BoundProcess(
                [sys.executable, "-m", *command],
                parting=signal.SIGKILL, environment=everything, output=output,
            )  # fmt: skip

    def stop(self) -> None:
        if self._process is not None:
            self._process.end_group()


class Dramatiq(_Started):
    """Dramatiq with its default middleware, Prometheus and results."""

    def start(self, slots: int) -> None:
        # Its exporter listens on every address by default.
        port, database = _free_port(), str(self._directory / "prometheus")
        self._start(
            "dramatiq", "tests.benchmarks.peer_dramatiq_app", "-p", str(slots), "-t", "1",
            PROMETHEUS="1", dramatiq_prom_host="127.0.0.1", dramatiq_prom_port=port,
            dramatiq_prom_db=database,
        )  # fmt: skip

    def send(self, name: str, *args: Any) -> Any:
        return self._app().actors[name].send(*args)

    def ended(self, handle: Any) -> str:
        from dramatiq.results import ResultFailure, ResultMissing

        try:
            handle.get_result(backend=self._app().broker.get_results_backend())
        except ResultMissing:
            return ""
        except ResultFailure as failure:
            return str(failure.orig_exc_type)
        return "success"

    def _app(self) -> Any:
        if os.environ.get("REDIS") != self._place.url:
            os.environ["REDIS"] = self._place.url
            sys.modules.pop("tests.benchmarks.peer_dramatiq_app", None)
        return importlib.import_module("tests.benchmarks.peer_dramatiq_app")


class Rq(_Started):
    """RQ with its pool of workers, each of which forks for every call."""

    def __init__(self, place: Workplace, directory: Path) -> None:
        from redis import Redis
        from rq import Queue

        super().__init__(place, directory)
        connection = Redis.from_url(place.url)
        self._queue = Queue("lane", connection=connection, default_timeout=peer_bodies.HARD)

    def start(self, slots: int) -> None:
        self._start("rq.cli", "worker-pool", "lane", "-q", "-n", str(slots), "-u", self._place.url)

    def send(self, name: str, *args: Any) -> Any:
        return self._queue.enqueue(getattr(peer_bodies, name), *args)

    def ended(self, handle: Any) -> str:
        status = str(handle.get_status(refresh=True).value)
        return status if status in ("failed", "finished", "stopped") else ""


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


PEERS: dict[str, type[Peer]] = {"celery-budgets": Budgets, "dramatiq": Dramatiq, "rq": Rq}
