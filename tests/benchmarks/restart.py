"""What a rolling restart loses, and how long calls wait for it: with a grace of 15 s, by way.

Four workers of four slots are replaced one after the other, each successor ready before its
predecessor gets SIGTERM, and SIGKILL after the grace, as Kubernetes does it. Ten calls of 10 to
100 ms come each second, two of 1 to 5 s every three, and two of 40 to 60 s every fifteen: half of
what the slots can do. ``budgets`` has ``budgets_stop_grace``, ``soft shutdown`` is Celery's
(``worker_soft_shutdown_timeout``, by REMAP_SIGTERM), with 2 s less than the grace to leave in;
``warm stop`` is Celery as it comes. All acknowledge late; the visibility timeout is 120 s. Before,
each slot has run one of the longest, which is what a worker knows of them; the calls that come are
the same for all.

Work lost is what calls spent less what they take. The delay of a call is the time from sending it
to its end, less what it takes. A call without a chance has at the SIGTERM longer to run than the
grace, even if it were the shortest of its kind: so that whoever knows its kind can tell. Its wait
is from the SIGTERM until it begins anew elsewhere. A call is lost if it has not ended five minutes
after the last was sent; it is in no other figure.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

from tests.benchmarks.ground import Ground, Workplace
from tests.benchmarks.measure import Figure, Target, in_turn, percentile
from tests.support.waiting import wait_until
from tests.support.workers import RunningWorker

APP = "tests.benchmarks.restart_app"
WAYS = {
    "budgets": {"WAY": "budgets"},
    "soft shutdown": {"WAY": "soft", "REMAP_SIGTERM": "SIGQUIT"},
    "warm stop": {"WAY": "warm"},
}
#: By task: calls per second, shortest and longest, seconds.
MIX = {"quick": (10.0, 0.01, 0.1), "usual": (2 / 3, 1.0, 5.0), "long": (2 / 15, 40.0, 60.0)}
LEAVING = 2.0
#: Of each worker (tests.benchmarks.restart_app).
SLOTS = 4


@dataclass
class Call:
    """What became of one call; instants are of ``time.time``."""

    seconds: float
    sent: float
    #: Seconds of the shortest of its kind.
    shortest: float
    #: Worker and instant of each begin.
    begins: list[tuple[str, float]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def delay(self) -> float:
        """Seconds from sending it to its end, less what it takes."""
        return self.ends[0] - self.sent - self.seconds


@dataclass(frozen=True)
class Restart:
    """What one restart did."""

    #: Those that have ended.
    calls: list[Call]
    never: int
    #: When each worker was told to stop.
    stops: dict[str, float]
    grace: float
    spent: float

    def lost(self) -> float:
        """Return the seconds of work that were done in vain."""
        return max(0.0, self.spent - sum(call.seconds for call in self.calls))

    def delay_meanwhile(self) -> float:
        """Return the p95 of the calls that were sent while workers were replaced."""
        first, last = min(self.stops.values()), max(self.stops.values()) + self.grace
        return _p95([call.delay for call in self.calls if first <= call.sent <= last])

    def delay_of_met(self) -> float:
        """Return the p95 of the calls that ran when their worker was told to stop."""
        return _p95([call.delay for call, _ in self.met()])

    def met(self) -> list[tuple[Call, float]]:
        """Return each call that ran when its worker was told to stop, and when that was."""
        stops = ((call, self.stops.get(call.begins[0][0], 0.0)) for call in self.calls)
        return [
            (call, stop)
            for call, stop in stops
            if call.begins[0][1] < stop < min(call.begins[0][1] + call.seconds, call.ends[0])
        ]

    def waits(self) -> list[float]:
        """Return how long each call without a chance waited until it began anew."""
        return [
            call.begins[1][1] - stop
            for call, stop in self.met()
            if call.begins[0][1] + call.shortest - stop > self.grace and len(call.begins) > 1
        ]

    def twice(self) -> float:
        """Return how many calls have ended more than once."""
        return sum(len(call.ends) > 1 for call in self.calls)


def run(ground: Ground) -> list[Figure]:
    # In a quick run not the last one, whose killed calls come back late.
    ways = list(WAYS)[: ground.amount(3, 2)]
    found = in_turn({way: partial(_restart, ground, way) for way in ways}, 1)
    against = {"budgets": "soft shutdown"}
    no_more = {"budgets": Target(1.0, to="soft shutdown")}

    def figure(name: str, unit: str, of: Callable[[Restart], float], *more: Any) -> Figure:
        return Figure(name, unit, {way: list(map(of, each)) for way, each in found.items()}, *more)

    return [
        figure("work lost", "s", Restart.lost, against, no_more),
        figure("delay of calls meanwhile, p95", "s", Restart.delay_meanwhile, against, no_more),
        figure("delay of calls a stop met, p95", "s", Restart.delay_of_met, against, no_more),
        figure(
            "wait of calls without a chance, mean", "s", lambda one: mean(one.waits() or [0.0]),
            against, {"budgets": Target(2.0)},
        ),
        figure("calls that a stop met", "calls", lambda one: len(one.met())),
        figure("calls without a chance", "calls", lambda one: len(one.waits())),
        figure("calls that ended twice", "calls", Restart.twice),
        figure("calls lost", "calls", lambda one: one.never, {}, {"budgets": Target(0)}),
    ]  # fmt: skip


def _p95(values: Sequence[float]) -> float:
    return percentile(values, 0.95) if values else 0.0


def _restart(ground: Ground, way: str) -> Restart:
    grace, scale = ground.amount(15, 4), ground.amount(100, 8) / 100
    place = ground.workplace(
        **WAYS[way], GRACE=str(grace - LEAVING if way == "soft shutdown" else grace),
        VISIBLE=str(ground.amount(120, 8)),
    )  # fmt: skip
    fleet = [place.worker(app=APP) for _ in range(ground.amount(4, 1))]
    load = Load(place, scale, share=len(fleet) / 4)
    time.sleep(ground.amount(60, 2))
    stops = {}
    for former in fleet:
        place.worker(app=APP)
        stops[former.name] = time.time()
        _stop(former, grace)
    calls = load.end(timeout=ground.amount(300, 60))
    place.close()
    ended = [call for call in calls if call.ends]
    return Restart(ended, len(calls) - len(ended), stops, grace, load.spent)


def _stop(worker: RunningWorker, grace: float) -> None:
    """Tell it to stop, and kill it when the grace is over."""
    worker.retire()
    deadline = time.monotonic() + grace
    while worker.returncode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.kill()


class Load:
    """Calls that come all the time, until :meth:`end`.

    Args:
        place: Where they go.
        scale: Part of its length that each takes, besides the quick ones.
        share: Part of the calls of four workers.
    """

    def __init__(self, place: Workplace, scale: float, share: float) -> None:
        self.spent = 0.0
        self._place = place
        self._scale = scale
        self._share = share
        self._calls: list[Call] = []
        # Drawn for each task by itself: the same calls come at the same time in all ways.
        self._chances = {task: random.Random(task) for task in MIX}
        self._ended = threading.Event()
        for _ in range(int(4 * SLOTS * share)):
            self._send_one("long", scale)
        wait_until(
            lambda: all(self._instants()), "the workers know their tasks", timeout=100 * scale + 10
        )
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        due, began = dict.fromkeys(MIX, 0.0), time.monotonic()
        while not self._ended.wait(0.01):
            for task, (rate, _, _) in MIX.items():
                scale = 1.0 if task == "quick" else self._scale
                while due[task] <= time.monotonic() - began:
                    due[task] += self._chances[task].expovariate(rate / scale * self._share)
                    self._send_one(task, scale)

    def _send_one(self, task: str, scale: float) -> None:
        _, shortest, longest = MIX[task]
        seconds = self._chances[task].uniform(shortest, longest) * scale
        self._place.send(task, len(self._calls), seconds)
        self._calls.append(Call(seconds, time.time(), shortest * scale))

    def end(self, timeout: float) -> list[Call]:
        """Send no more, wait until all have ended, or *timeout* seconds, and return them."""
        self._ended.set()
        self._thread.join()
        deadline = time.monotonic() + timeout
        while not all(ends := self._instants()) and time.monotonic() < deadline:
            time.sleep(0.2)
        redis = self._place.redis
        for number, (call, instants) in enumerate(zip(self._calls, ends, strict=True)):
            call.ends = [float(instant) for instant in instants]
            for text in redis.lrange(f"began:{number}", 0, -1):
                worker, instant = text.split()
                call.begins.append((worker, float(instant)))
        self.spent = float(redis.get("spent") or 0.0)
        return self._calls

    def _instants(self) -> list[list[str]]:
        """Return when each call ended."""
        pipeline = self._place.redis.pipeline()
        for number in range(len(self._calls)):
            pipeline.lrange(f"ended:{number}", 0, -1)
        found: list[list[str]] = pipeline.execute()
        return found
