"""Answers to ``inspect budgets`` as a worker would give them, for tests without one."""

from __future__ import annotations

from typing import Any

from celery_budgets.model.kill import Kill
from celery_budgets.sending.remote_control import Replies
from celery_budgets.telemetry.statistics import Statistics
from celery_budgets.units import MIB


class ScriptedInspection:
    """Answers each question with the next of *rounds*; the last one again and again."""

    def __init__(self, *rounds: Replies | BaseException) -> None:
        self.rounds = list(rounds)

    def ask(self, timeout: float = 1.0) -> Replies:
        found = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        if isinstance(found, BaseException):
            raise found
        return found


def lane(active: int = 0, limit: int = 2, waiting: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "queue": "quick",
        "consumed": True,
        "active": active,
        "limit": limit,
        "waiting": waiting,
        "rss_warning": 400 * MIB,
        "max_rss": 512 * MIB,
        "hard_rss": 768 * MIB,
        **more,
    }


def answer(
    lanes: dict[str, Any] | None = None,
    calls: Statistics | None = None,
    pool_rss: tuple[int, ...] = (60 * MIB,),
    **more: Any,
) -> dict[str, Any]:
    lanes = lanes or {"quick": lane()}
    return {
        "pool": "prefork",
        "uptime": 12.0,
        "capacity": 2,
        "slots": 2,
        "lanes": lanes,
        "memory": {
            "worker_rss": 70 * MIB,
            "pool_rss": {str(100 + n): size for n, size in enumerate(pool_rss)},
            "max_worker_rss": None,
        },
        "abandoned_threads": 0,
        "telemetry_failures": 0,
        "statistics": (calls or Statistics()).to_json(),
        **more,
    }


def ended(lane_name: str, seconds: float, **outcomes: int) -> Statistics:
    """Statistics of calls that took *seconds* each, by how they ended."""
    statistics = Statistics()
    calls = statistics.of(lane_name, "task")
    for outcome, count in outcomes.items():
        calls.outcomes[outcome] += count
        for _ in range(count):
            calls.duration.add(seconds)
    return statistics


HISTORY = {"end": 100, "lanes": {"quick": {"succeeded": [1.0, 2.0]}}}


class WorkersOfPage:
    """Answers each question of the page, counts them, and may be away."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: Exception | None = None
        self.kills: list[Kill] = []
        self.answer = answer

    def ask(self, timeout: float = 1.0, *, command: str = "budgets", **_: Any) -> Replies:
        self.asked.append(command)
        if self.away is not None:
            raise self.away
        if command == "lanes_kills":
            return Replies({"a@h": {"kills": [kill.to_json() for kill in self.kills]}}, ())
        if command == "lanes_history":
            return Replies({"a@h": HISTORY}, ())
        return Replies({"a@h": self.answer(kills=len(self.kills))}, ())
