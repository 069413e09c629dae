"""The data of ``celery lanes status`` and ``celery lanes top``: a row per lane and worker.

See also: :mod:`celery_budgets.sending.status.summary` for one entry per lane,
:mod:`celery_budgets.sending.status.alerts`, which derives the alerts of a row, and
:mod:`celery_budgets.cli.lanes_table`, which draws the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from celery_budgets.sending.remote_control import Replies
from celery_budgets.sending.status.alerts import Alert, alerts_of, is_paused
from celery_budgets.sending.status.summary import summaries
from celery_budgets.telemetry.objectives import Objective
from celery_budgets.telemetry.queues import LaneQueue
from celery_budgets.telemetry.snapshots import (
    Concurrency,
    Slots,
    WorkerMemory,
    objectives_of,
    queues_of,
)
from celery_budgets.telemetry.statistics import CallStatistics, Statistics

__all__ = ["Overview", "Row"]

#: How many looks the history of a backlog has.
HISTORY = 12
_FAILED = ("failed", "soft_time_limit")
_KILLED = ("hard_time_limit", "memory_limit", "worker_lost")


@dataclass(frozen=True, slots=True)
class Row:
    """One lane of one worker; durations in seconds, sizes in bytes, ``None`` where unknown."""

    worker: str
    lane: str
    active: int
    limit: int
    waiting: int
    #: The queue of the lane at the broker, the same in each of its rows.
    queue: LaneQueue
    #: Calls that have ended since the worker started.
    calls: int
    failed: int
    killed: int
    #: Calls per second since the previous poll; ``None`` at the first.
    rate: float | None
    p50: float | None
    p95: float | None
    #: RSS of the largest process that runs calls, and the levels it is compared with.
    rss: int
    rss_warning: int
    max_rss: int
    gate: str
    #: Whether an operator has paused the lane on this worker.
    paused: bool = False
    alerts: tuple[Alert, ...] = ()
    #: How far the lane keeps the wait that it promises, on all workers; ``None``: it promises none.
    objective: Objective | None = None
    #: The backlog of the lane at the last looks, this one last; ``None`` where unknown.
    history: tuple[int | None, ...] = ()

    @property
    def slots(self) -> Slots:
        """The slots of this lane on this worker."""
        return Slots(self.active, self.limit, self.waiting)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, its queue among them."""
        values = asdict(self)
        del values["queue"], values["history"], values["objective"]
        slo = asdict(self.objective) if self.objective is not None else None
        return {**values, **asdict(self.queue), "drain": self.queue.drain, "slo": slo}


@dataclass(frozen=True, slots=True)
class Overview:
    """All rows, the workers that did not answer, and the lanes that no worker serves."""

    rows: tuple[Row, ...]
    answered: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    #: Those of the silent workers that replied, but run without budgets.
    plain: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()
    #: All lanes of the app, in their order.
    lanes: tuple[str, ...] = ()
    #: What the workers have answered.
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        answers: Replies,
        lanes: Iterable[str],
        before: Overview | None = None,
        seconds: float | None = None,
    ) -> Overview:
        """Return the overview built from *answers*.

        Args:
            answers: The answers of all workers to ``inspect budgets``.
            lanes: Names of the app's lanes, in their order.
            before: The previous overview, for the rates.
            seconds: Seconds between the two.
        """
        order = list(lanes)
        counted = {(row.worker, row.lane): row.calls for row in before.rows} if before else {}
        queues = queues_of(answers.by_worker)
        rows = [
            row
            for worker, answer in answers.by_worker.items()
            for row in _rows(worker, answer, queues, counted, seconds)
        ]
        earlier = {row.lane: row.history for row in before.rows} if before else {}
        objectives = objectives_of(answers.by_worker)
        rows = [
            replace(
                row,
                objective=objectives.get(row.lane),
                history=(*earlier.get(row.lane, ()), row.queue.backlog)[-HISTORY:],
            )
            for row in rows
        ]
        rows.sort(key=lambda row: (_position(row.lane, order), row.lane, row.worker))
        served = {row.lane for row in rows}
        return cls(
            rows=tuple(rows),
            answered=tuple(answers.by_worker),
            silent=answers.silent,
            plain=answers.plain,
            unserved=tuple(lane for lane in order if lane not in served),
            lanes=tuple(order),
            answers=answers.by_worker,
        )

    @property
    def total(self) -> Slots:
        """The sum of the slots of all rows."""
        return sum((row.slots for row in self.rows), Slots())

    def to_json(self) -> dict[str, Any]:
        """Return the overview as JSON values, in seconds and bytes.

        ``lanes`` has a row per lane and worker, ``summary`` one entry per lane.
        """
        return {
            "lanes": [row.to_json() for row in self.rows],
            "workers": list(self.answered),
            "silent": list(self.silent),
            "plain": list(self.plain),
            "unserved": list(self.unserved),
            "summary": summaries(self.answers, self.lanes),
        }


def _position(lane: str, order: list[str]) -> int:
    return order.index(lane) if lane in order else len(order)


def _rows(
    worker: str,
    answer: Mapping[str, Any],
    queues: Mapping[str, LaneQueue],
    counted: Mapping[tuple[str, str], int],
    seconds: float | None,
) -> Iterator[Row]:
    memory = WorkerMemory.of(answer)
    ended = Statistics.from_json(answer.get("statistics", ())).lanes
    for lane, slots in Concurrency.of({worker: answer}).workers[worker].items():
        calls = ended.get(lane, CallStatistics())
        earlier = counted.get((worker, lane))
        levels = memory.levels[lane]
        yield Row(
            worker=worker,
            lane=lane,
            active=slots.active,
            limit=slots.limit,
            waiting=slots.waiting,
            queue=queues[lane],
            calls=calls.total,
            failed=sum(calls.outcomes[outcome] for outcome in _FAILED),
            killed=sum(calls.outcomes[outcome] for outcome in _KILLED),
            rate=_rate(calls.total, earlier, seconds),
            p50=calls.duration.quantile(0.5),
            p95=calls.duration.quantile(0.95),
            rss=memory.largest_bytes,
            rss_warning=levels.rss_warning,
            max_rss=levels.max_rss,
            gate=memory.gate,
            paused=is_paused(answer["lanes"][lane]),
            alerts=alerts_of(lane, answer),
        )


def _rate(total: int, earlier: int | None, seconds: float | None) -> float | None:
    """Return calls per second; ``None`` when the worker has restarted in between."""
    if earlier is None or not seconds or total < earlier:
        return None
    return (total - earlier) / seconds
