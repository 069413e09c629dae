"""Four workers whose calls have limits, what happens to them, and what their calls tell of it.

Used by tests, at a size for every day, and by the benchmark ``crashes``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from redis import Redis

from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker

__all__ = ["APP", "LEASE", "Report", "RoughFleet", "report_of"]

APP = "tests.brokers.limited_app"
TASKS = ("plain", "keyed", "paced", "all_three")
TENANTS = 10
LEASE = 5.0
#: How long a worker stands still, seconds: with the time since its last renewal, a third of a
#: lease at most, it is less than a lease.
STOPPED = 0.5 * LEASE
#: By how much the clocks of workers are ahead, seconds.
CLOCKS = (0.0, 5.0)


class RoughFleet:
    """Four workers, and calls for them.

    Args:
        start: Starts a worker, as the fixture ``worker`` does.
        sender: An app that sends to their broker.
        events: A client of the Redis that has what calls write down.
        limits: The server that keeps the limits.
        seed: Of what happens when, and to whom.
    """

    def __init__(
        self,
        start: Callable[..., RunningWorker],
        sender: Any,
        events: Redis,
        limits: Server,
        seed: int = 17,
    ) -> None:
        self._start, self._sender, self._events, self._limits = start, sender, events, limits
        self._chance = random.Random(seed)
        self._started = 0
        self.running: list[RunningWorker] = []
        self.start(4)

    def start(self, workers: int = 1) -> None:
        """Start workers, whose clocks differ."""
        for _ in range(workers):
            clock = CLOCKS[self._started % len(CLOCKS)]
            self._started += 1
            env = {"LEASE": f"{LEASE:g}s", "LIMITS_URL": self._limits.url,
                   "CLOCK_AHEAD": str(clock)}  # fmt: skip
            self.running.append(self._start(APP, "-Q", "limited",
                                            ready=False, env=env))  # fmt: skip

    def send(self, calls: int, shortest: float = 0.02, longest: float = 0.2) -> None:
        """Send *calls* of each kind in turn, for tenants at random."""
        for number in range(calls):
            task = f"{APP}.{TASKS[number % len(TASKS)]}"
            tenant = f"t{self._chance.randrange(TENANTS)}"
            arguments = (f"{number}", tenant, self._chance.uniform(shortest, longest))
            self._sender.send_task(task, arguments, queue="limited", ignore_result=True)

    def send_plain(self, calls: int, seconds: float) -> None:
        """Send *calls* that take so long, without a key or a rate."""
        for number in range(calls):
            arguments = (f"plain {number}", "", seconds)
            self._sender.send_task(f"{APP}.plain", arguments, queue="limited", ignore_result=True)

    def bodies(self) -> int:
        """Return how many processes of workers are in a body that has not ended."""
        return sum(len(self.bodies_of(each)) for each in self.running)

    def bodies_of(self, worker: RunningWorker) -> set[int]:
        """Return the processes of *worker* that are."""
        running = {int(pid) for pid, _ in report_of(self._events).running}
        return running & set(worker.pool_pids())

    def live_through(self, happenings: list[Callable[[], None]], calls: int) -> None:
        """Have *happenings*, in any order, spread over *calls*; wait until all of these are done.

        Raises:
            AssertionError: Calls are lost, or stand still for a minute.
        """
        self._chance.shuffle(happenings)
        for number, happen in enumerate(happenings):
            self._wait_until_done(calls * (number + 1) // (len(happenings) + 2))
            happen()
        self._wait_until_done(calls)

    def _wait_until_done(self, calls: int) -> None:
        while (done := self._done()) < calls:
            wait_until(
                lambda: self._done() > done,
                f"calls go on; {done} are done", timeout=60, detail=self.tail,
            )  # fmt: skip

    def _done(self) -> int:
        return int(self._events.scard("done"))  # type: ignore[arg-type]

    def tail(self) -> str:
        """Return the ends of the logs of workers."""
        return "\n".join(each.tail(15) for each in self.running)

    # What happens.

    def kill_worker(self) -> None:
        """SIGKILL of a worker with its processes; another takes its place."""
        victim = self.running.pop(self._chance.randrange(len(self.running)))
        pids = victim.pool_pids()
        victim.kill()
        for pid in pids:
            self._events.xadd("events", {"what": "killed", "pid": pid})
        self.start()

    def kill_process(self) -> None:
        """SIGKILL of one process of a pool."""
        pids = self._chance.choice(self.running).pool_pids()
        if not pids:
            return  # it is about to start
        pid = self._chance.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            # What its worker hears of later is written down first: it gives the place back.
            os.kill(pid, signal.SIGSTOP)
            self._events.xadd("events", {"what": "killed", "pid": pid})
            os.kill(pid, signal.SIGKILL)

    def stop_worker(self) -> None:
        """SIGSTOP of a worker's main process; its calls go on."""
        self._stand_still([self._chance.choice(self.running).pid])

    def stop_group(self) -> None:
        """SIGSTOP of a worker with its processes."""
        victim = self._chance.choice(self.running)
        self._stand_still([victim.pid, *victim.pool_pids()])

    def _stand_still(self, pids: list[int]) -> None:
        there = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                there.append(pid)
        time.sleep(STOPPED)
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def restart_limits(self) -> None:
        """SIGKILL of the Redis that keeps the limits; it comes back at once."""
        self._limits.kill()
        self._limits.start()

    def lose_limits_for_long(self) -> None:
        """It comes back after all leases have ended by its clock."""
        self._limits.kill()
        time.sleep(1.2 * LEASE)
        self._limits.start()

    def replace_worker(self) -> None:
        """Stop the oldest worker as a deployment does, when another has taken its place."""
        self.start()
        self.running[-1].wait_for_log("ready.", timeout=60)
        self.running.pop(0).stop()

    # What is left.

    def places_left(self) -> dict[str, int]:
        """Return who holds places whose leases have not ended, by their number."""
        found: dict[str, int] = {}
        now = _micros(self._limits.client)
        for name in self._limits.client.scan_iter(match="celery-budgets:{limits}:held:*"):
            for member in self._limits.client.zrangebyscore(name, now, "+inf"):
                found[member.decode()] = found.get(member.decode(), 0) + 1
        return found

    def wait_until_free(self) -> float:
        """Wait until every place is free; return how long that took, seconds."""
        began = time.monotonic()
        wait_until(lambda: not self.places_left(), "places are free", timeout=2 * LEASE)
        return time.monotonic() - began

    def report(self) -> Report:
        """Return what calls have told."""
        return report_of(self._events)


@dataclass
class Report:
    """What calls have told in the stream of their events."""

    #: Most at once, by limit.
    most: Counter[str] = field(default_factory=Counter)
    #: When calls began, by limit, seconds.
    begun: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    done: set[str] = field(default_factory=set)
    #: Bodies that have begun.
    bodies: int = 0
    #: Limits of those that have not ended, by process and name.
    running: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @property
    def most_of_a_tenant(self) -> int:
        """Most calls of one tenant at once."""
        return max(n for limit, n in self.most.items() if limit.startswith("tenant:"))

    def most_within(self, seconds: float, limit: str = "pace") -> int:
        """Return how many calls of *limit* have begun in a window of *seconds* at most."""
        begun, first, most = self.begun[limit], 0, 0
        for last, at in enumerate(begun):
            while begun[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def longest_pause(self, limit: str = "api") -> float:
        """Return the longest time in which no call of *limit* has begun, seconds."""
        return max(late - early for early, late in pairwise(self.begun[limit]))


def report_of(events: Redis) -> Report:
    """Return what calls have told.

    A body counts from its first entry to its last, or until its process was killed. What a killed
    process had sent may come after that.
    """
    report = Report()
    running, now, killed = report.running, Counter[str](), set[str]()

    def end(pid: str, name: str) -> None:
        for limit in running.pop((pid, name), ()):
            now[limit] -= 1

    for entry, fields in events.xrange("events"):  # type: ignore[union-attr]
        event = {key.decode(): value.decode() for key, value in fields.items()}
        pid, name = event["pid"], event.get("name", "")
        if event["what"] == "killed":
            killed.add(pid)
            for which in [which for which in running if which[0] == pid]:
                end(*which)
        elif event["what"] == "ended":
            if event["done"] == "1":
                report.done.add(name)
            end(pid, name)
        elif pid not in killed:
            report.bodies += 1
            running[pid, name] = event["limits"].split()
            for limit in running[pid, name]:
                now[limit] += 1
                report.most[limit] = max(report.most[limit], now[limit])
                report.begun[limit].append(int(entry.decode().partition("-")[0]) / 1000)
    return report


def _micros(client: Redis) -> int:
    seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds * 1_000_000 + micros)
