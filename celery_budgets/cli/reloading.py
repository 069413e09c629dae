"""Replaces the workers of a supervisor one by one: each stops when its successor is ready.

Runs in the supervisor, in the loop of :mod:`celery_budgets.cli.supervisor`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from celery_budgets.cli.supervised import Say, Supervised

__all__ = ["Reloading"]


class Reloading:
    """One reload.

    Args:
        workers: The workers of the supervisor, in order; changed.
        successors: The workers that are to run in the end.
        start: Starts a worker.
        retire: Has a worker stop warmly, and not be started again.
        say: Prints a line of a worker.
    """

    def __init__(
        self,
        workers: list[Supervised],
        successors: Iterable[Supervised],
        *,
        start: Callable[[Supervised], None],
        retire: Callable[[Supervised], None],
        say: Say,
    ) -> None:
        self._workers = workers
        self._former = list(workers)
        self._successors = deque(successors)
        self._wanted = {worker.name for worker in self._successors}
        self._start = start
        self._retire = retire
        self._say = say
        self._current: Supervised | None = None

    def step(self) -> bool:
        """Go on as far as possible now; return whether there is more to do."""
        current = self._current
        if current is not None and current.process is None:
            # Its exit has been told; the supervisor would start it again and again.
            self._workers.remove(current)
            self._say(current.name, "did not become ready: the reload ends, its predecessor stays")
            return False
        if current is not None and not current.is_ready():
            return True
        if current is not None:
            self._replace(current.name)
            self._current = None
        if self._successors:
            self._current = self._successors.popleft()
            self._workers.append(self._current)
            self._start(self._current)
            return True
        for worker in [each for each in self._former if each.name not in self._wanted]:
            self._let_go(worker)
        self._say("", "reloaded")
        return False

    @property
    def starting(self) -> Supervised | None:
        """The worker that is not ready yet."""
        return self._current

    def _replace(self, name: str) -> None:
        for worker in [each for each in self._former if each.name == name]:
            self._let_go(worker)

    def _let_go(self, worker: Supervised) -> None:
        self._former.remove(worker)
        self._workers.remove(worker)
        self._retire(worker)
