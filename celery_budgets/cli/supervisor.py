"""Supervises the workers of several lanes.

It starts each worker so that it cannot outlive the supervisor, prints the workers' output,
restarts a worker that ends, with growing pauses and without giving up, and stops all: first by
a warm shutdown, then by a kill. One thread runs one loop; signal handlers only count, so that
no stop interrupts a step of the loop.

See also: :mod:`celery_budgets.cli.up`, which builds the commands, and
:mod:`celery_budgets.cli.reloading`, which replaces workers.
"""

from __future__ import annotations

import os
import selectors
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery_budgets.cli.reloading import Reloading
from celery_budgets.cli.supervised import Backoff, Say, Supervised, describe
from celery_budgets.errors import BudgetsError
from celery_budgets.units import format_duration
from celery_budgets.worker.startup.readiness import notify

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
        environments: Variables of single workers over those, by the name of the lane.
        backoff: Returns a new backoff for each lane.
        longest_call: Seconds that a warm shutdown may take, for the message.
        reload: Returns the commands and environments of new workers; gets the number of the
            reload, from 1 on. ``None``: there is no reload.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        say: Say,
        environment: dict[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        backoff: Callable[[], Backoff] = Backoff,
        longest_call: float | None = None,
        reload: Callable[[int], tuple[Mapping[str, Sequence[str]], Any]] | None = None,
    ) -> None:
        self._say = say
        self._environment = environment
        self._backoff = backoff
        self._longest_call = longest_call
        self._reload = reload
        #: Where workers make files when they are ready; only while it runs.
        self._folder = ""
        self._workers = self._planned(commands, environments or {})
        #: Replaced workers, on their way out.
        self._retired: list[Supervised] = []
        self._selector = selectors.DefaultSelector()
        self._requests = 0
        self._obeyed = 0
        self._killed = False
        self._reloads_asked = self._reloads = 0
        self._reloading: Reloading | None = None
        self._status = ""

    def _planned(
        self,
        commands: Mapping[str, Sequence[str]],
        environments: Mapping[str, Mapping[str, str]],
    ) -> list[Supervised]:
        base = dict(os.environ if self._environment is None else self._environment)
        return [
            Supervised(
                name,
                command,
                say=self._say,
                backoff=self._backoff(),
                environment=base | dict(environments.get(name, {})),
                longest_call=self._longest_call,
            )
            for name, command in commands.items()
        ]

    def stop(self, *_: Any) -> None:
        """Request a warm shutdown; the second time, a kill. Safe in a signal handler."""
        self._requests += 1

    def reload(self, *_: Any) -> None:
        """Request new workers in place of all, one after the other. Safe in a signal handler."""
        self._reloads_asked += 1

    @property
    def can_reload(self) -> bool:
        """Whether there is something to reload."""
        return self._reload is not None

    def run(self) -> int:
        """Run until stopped, and return :data:`EXIT_WARM` or :data:`EXIT_KILLED`."""
        with tempfile.TemporaryDirectory(prefix="celery-lanes-") as self._folder:
            self._loop()
        self._say("", "all workers stopped" + (", not all by themselves" if self._killed else ""))
        return EXIT_KILLED if self._killed else EXIT_WARM

    def _loop(self) -> None:
        try:
            while not (self._requests and not self._running()):
                self._obey()
                if not self._requests:
                    self._start_due()
                    self._go_on_reloading()
                    self._tell_status()
                self._pass_on()
                self._bury()
        finally:
            for worker in self._running():
                self._kill(worker)
            self._selector.close()

    def _running(self) -> list[Supervised]:
        return [each for each in (*self._workers, *self._retired) if each.process is not None]

    def _start_due(self) -> None:
        for worker in self._workers:
            due = worker.process is None and worker.starts_at <= time.monotonic()
            if due and worker is not self._starting():
                self._start(worker)

    def _starting(self) -> Supervised | None:
        """Return the successor that is not ready yet, which is not started again if it ends."""
        return self._reloading.starting if self._reloading is not None else None

    def _start(self, worker: Supervised) -> None:
        self._selector.register(worker.start(self._folder), selectors.EVENT_READ, worker)

    def _go_on_reloading(self) -> None:
        if self._reloading is None and self._reloads_asked > self._reloads:
            self._reloads = self._reloads_asked
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._begin_reload()
            if self._reloading is None:
                notify("READY=1")
        if self._reloading is not None and not self._reloading.step():
            self._reloading = None
            notify("READY=1")

    def _begin_reload(self) -> None:
        assert self._reload is not None
        try:
            planned = self._planned(*self._reload(self._reloads))
        except (BudgetsError, ValueError) as exc:
            self._say("", f"not reloaded, everything stays as it is: {exc}")
            return
        self._say("", "reloading, one worker after the other")
        self._reloading = Reloading(
            self._workers, planned, start=self._start, retire=self._retire, say=self._say
        )

    def _retire(self, worker: Supervised) -> None:
        if worker.process is None:
            return
        self._retired.append(worker)
        worker.process.terminate()

    def _tell_status(self) -> None:
        """Print how many workers are ready, and the restarts, when that has changed."""
        ready = sum(worker.process is not None and worker.is_ready() for worker in self._workers)
        again = [f"{each.name} {each.restarts}" for each in self._workers if each.restarts]
        status = f"{ready} of {len(self._workers)} workers ready"
        status += f"; restarts: {', '.join(again)}" if again else ""
        if status == self._status or (not ready and not self._status):
            return
        self._status = status
        self._say("", status)
        all_ready = "READY=1\n" if ready == len(self._workers) else ""
        notify(f"{all_ready}STATUS={status}")

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
            if worker in self._retired:
                self._retired.remove(worker)
                self._say(worker.name, f"replaced worker {describe(code)}")
            elif worker is self._starting():
                self._say(worker.name, f"worker {worker.how_it_ended(code)}")
            elif not self._requests:
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
        notify("STOPPING=1")
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
    """Stop *supervisor* on Ctrl-C, SIGTERM and a closed terminal; main thread only.

    Any other SIGHUP reloads it.
    """
    # nohup and shells that run scripts in the background set some of them to be ignored.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    on_terminal = _has_terminal()

    def hang_up(*_: Any) -> None:
        """Reload, unless the terminal has gone that there was."""
        if supervisor.can_reload and (not on_terminal or _has_terminal()):
            supervisor.reload()
        else:
            supervisor.stop()

    handlers = dict.fromkeys(heeded, supervisor.stop)
    if signal.SIGHUP in handlers:
        handlers[signal.SIGHUP] = hang_up
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
