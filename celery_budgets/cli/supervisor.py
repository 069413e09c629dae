"""Supervises the workers of several lanes.

It starts each worker so that it cannot outlive the supervisor, prints the workers' output,
restarts a worker that ends, with growing pauses and without giving up, and stops all: first by
a warm shutdown, then by a kill. One thread runs one loop; signal handlers only count, so that
no stop interrupts a step of the loop.

See also: :mod:`celery_budgets.cli.up`, which builds the commands.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery_budgets.cli.supervised import Backoff, Say, Supervised, describe
from celery_budgets.units import format_duration

__all__ = ["EXIT_KILLED", "EXIT_WARM", "Supervisor", "stopped_by_signals"]

#: Every worker stopped by itself.
EXIT_WARM = 0
#: A worker had to be killed.
EXIT_KILLED = 1
#: Seconds between two checks of the workers while none of them prints.
TICK = 0.1

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Keeps one worker per lane running until it is stopped.

    Args:
        commands: Command of each worker, by the name of its lane.
        say: Prints a line of a lane (empty name: of the supervisor itself).
        environment: Environment of the workers; ``None``: that of this process.
        backoff: Returns a new backoff for each lane.
        longest_call: Seconds that a warm shutdown may take, for the message.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        say: Say,
        environment: dict[str, str] | None = None,
        backoff: Callable[[], Backoff] = Backoff,
        longest_call: float | None = None,
    ) -> None:
        self._say = say
        self._longest_call = longest_call
        self._workers = [
            Supervised(
                name,
                command,
                say=say,
                backoff=backoff(),
                environment=environment,
                longest_call=longest_call,
            )
            for name, command in commands.items()
        ]
        self._selector = selectors.DefaultSelector()
        self._requests = 0
        self._obeyed = 0
        self._killed = False

    def stop(self, *_: Any) -> None:
        """Request a warm shutdown; the second time, a kill. Safe in a signal handler."""
        self._requests += 1

    def run(self) -> int:
        """Run until stopped, and return :data:`EXIT_WARM` or :data:`EXIT_KILLED`."""
        try:
            while not (self._requests and not self._running()):
                self._obey()
                if not self._requests:
                    self._start_due()
                self._pass_on()
                self._bury()
        finally:
            for worker in self._running():
                self._kill(worker)
            self._selector.close()
        self._say("", "all workers stopped" + (", not all by themselves" if self._killed else ""))
        return EXIT_KILLED if self._killed else EXIT_WARM

    def _running(self) -> list[Supervised]:
        return [worker for worker in self._workers if worker.process is not None]

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and worker.starts_at <= time.monotonic():
                self._selector.register(worker.start(), selectors.EVENT_READ, worker)

    def _pass_on(self) -> None:
        for key, _ in self._selector.select(TICK):
            worker: Supervised = key.data
            if not worker.read():
                # It may still run with its output closed; select would not wait any more.
                self._selector.unregister(key.fileobj)

    def _bury(self) -> None:
        for worker in self._running():
            assert worker.process is not None
            if worker.process.poll() is None:
                continue
            code = self._forget(worker)
            if not self._requests:
                worker.plan_restart(code)
            else:
                self._say(worker.name, f"worker {describe(code)}")

    def _forget(self, worker: Supervised) -> int:
        assert worker.process is not None
        assert worker.process.stdout is not None
        for key in list(self._selector.get_map().values()):
            if key.data is worker:
                self._selector.unregister(key.fileobj)
        return worker.ended()

    def _obey(self) -> None:
        """Act on the stop requests since the last iteration."""
        if self._requests > self._obeyed and self._obeyed == 0:
            self._obeyed = 1
            self._stop_warmly()
        if self._requests > self._obeyed:
            self._obeyed = self._requests
            self._say("", "killing the workers")
            for worker in self._running():
                self._kill(worker)

    def _stop_warmly(self) -> None:
        bound = self._longest_call
        wait = f", at most {format_duration(bound)}" if bound is not None else ""
        self._say("", f"stopping; running calls may end{wait}; Ctrl-C again kills them")
        for worker in self._running():
            assert worker.process is not None
            worker.process.terminate()

    def _kill(self, worker: Supervised) -> None:
        assert worker.process is not None
        if worker.process.poll() is None:
            self._killed = True
        self._forget(worker)


@contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    """Stop *supervisor* on Ctrl-C, SIGTERM and a closed terminal; main thread only."""
    # nohup and shells that run scripts in the background set some of them to be ignored.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, supervisor.stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
