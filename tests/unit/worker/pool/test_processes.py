"""Which processes of a pool are up, and which have been away for too long, with a fake pool."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.worker.pool.processes import PoolProcesses


class Pool:
    """The part of an AsynPool that is looked at."""

    _proc_alive_timeout = 4.0

    def __init__(self, size: int) -> None:
        self._processes = size
        self._pool: list[SimpleNamespace] = []
        self._fileno_to_inq: dict[int, SimpleNamespace] = {}
        self._pids = iter(range(100, 1000))
        for place in range(size):
            self.add(place)

    def add(self, place: int, *, up: bool = True) -> None:
        process = SimpleNamespace(index=place, pid=next(self._pids), inqW_fd=place + 10)
        self._pool.append(process)
        if up:
            self._fileno_to_inq[process.inqW_fd] = process

    def drop(self, place: int) -> None:
        self._pool = [process for process in self._pool if process.index != place]
        self._fileno_to_inq.pop(place + 10, None)


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def looking(pool: Pool, now: list[float]) -> PoolProcesses:
    processes = PoolProcesses(pool, clock=lambda: now[0])
    processes.look()
    return processes


def pass_time(processes: PoolProcesses, now: list[float], seconds: int) -> int:
    for _ in range(seconds):
        now[0] += 1
        processes.look()
    return processes.missing()


def test_a_place_whose_processes_are_killed_again_and_again_is_missing(now):
    """Until one is up; whatever its successors are called."""
    pool = Pool(2)
    processes = looking(pool, now)
    assert (processes.up(), processes.missing(), processes.starts) == (2, 0, 2)
    for _ in range(3):
        pool.drop(1)
        pass_time(processes, now, 1)
        pool.add(1, up=False)
        pass_time(processes, now, 3)
    assert (processes.up(), processes.missing(), processes.starts) == (1, 1, 5)
    pool.drop(1)
    pool.add(1)
    processes.look()
    assert (processes.up(), processes.missing()) == (2, 0)


def test_a_pool_that_shrinks_misses_nobody(now):
    """Celery ends any idle process, so that the places have a gap afterwards."""
    pool = Pool(3)
    processes = looking(pool, now)
    pool._processes = 2
    pool.drop(0)
    assert pass_time(processes, now, 10) == 0
    pool._processes = 3
    pool.add(0, up=False)
    assert pass_time(processes, now, 3) == 0
    assert pass_time(processes, now, 3) == 1


def test_processes_that_are_replaced_often_are_not_missing(now):
    """As with max_tasks_per_child=1: one or the other is always on its way."""
    pool = Pool(2)
    processes = looking(pool, now)
    for turn in range(20):
        for place in (0, 1):
            pool.drop(place)
            pool.add(place, up=place == turn % 2)
        assert pass_time(processes, now, 1) == 0
