"""``News``: asks the workers once per interval, however many look on, and remembers the answers.

One thread asks, and only while somebody is interested. Whoever serves a request reads what is
there and never waits for a broker: it may hang for as long as it likes.

Runs in the process that serves the page.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.model.kill import Kill, grouped
from celery_budgets.sending.remote_control import Inspection, Replies
from celery_budgets.sending.stacks import kills
from celery_budgets.sending.status.history import ask_history
from celery_budgets.sending.status.overview import Overview
from celery_budgets.web.limits import LimitNews

__all__ = ["ANSWER_SECONDS", "INTERVAL", "Bulletin", "News"]

logger = logging.getLogger(__name__)

#: Seconds between two questions to the workers.
INTERVAL = 2.0
#: Seconds that workers have to answer.
ANSWER_SECONDS = 1.0
#: How long it goes on asking after the last request, seconds.
INTEREST_SECONDS = 30.0
#: How old the history may be, and the list of kills where no worker has told of a new one, seconds.
HISTORY_SECONDS = 30.0
KILLS_SECONDS = 60.0
#: Most groups of kills, and single ones, that are told.
MOST_GROUPS = 50
MOST_KILLS = 50


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What is known after one round of questions."""

    #: Counts the rounds, from 1.
    number: int = 0
    #: What ``celery lanes status --json`` prints; ``None`` before the first answer.
    status: Mapping[str, Any] | None = None
    #: The same as text, made once for all who look on.
    text: str = ""
    #: Monotonic instant of the last answer.
    taken_at: float = 0.0
    #: Why the last round has failed; empty where it did not.
    problem: str = ""
    kills: Mapping[str, Any] = field(default_factory=dict)
    #: The round in which ``kills`` has last changed.
    kills_number: int = 0
    #: Of :class:`celery_budgets.web.limits.LimitNews`, and the round in which it has changed.
    limits: Mapping[str, Any] = field(default_factory=dict)
    limits_number: int = 0
    history: Mapping[str, Any] | None = None


class News:
    """Keeps the latest bulletin about the lanes of *app*.

    Args:
        app: The Celery app.
        interval: Seconds between two rounds.
        inspection: Asks the workers.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        app: Any,
        interval: float = INTERVAL,
        inspection: Any = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._app = app
        self.interval = interval
        self._inspection = inspection or Inspection(app)
        self._clock = clock
        self._bulletin = Bulletin()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted_until = self._history_until = 0.0
        self._kills_at = self._history_at = float("-inf")
        self._kills_seen: dict[str, int] = {}
        self._limits = LimitNews(app, clock)

    def latest(self, timeout: float = ANSWER_SECONDS + 2.0) -> Bulletin:
        """Return the latest bulletin; wait for the first, or for a new one after a pause.

        Args:
            timeout: Longest wait, seconds.
        """
        with self._changed:
            before, asleep = self._bulletin, self._thread is None
            self._want()
            if asleep or not before.number:
                self._changed.wait_for(lambda: self._bulletin is not before, timeout)
            return self._bulletin

    def after(self, number: int, timeout: float) -> Bulletin | None:
        """Return the next bulletin after *number*; ``None`` if none comes within *timeout*."""
        with self._changed:
            self._want()
            if self._changed.wait_for(lambda: self._bulletin.number > number, timeout):
                return self._bulletin
            return None

    def history(self, timeout: float = ANSWER_SECONDS + 2.0) -> Mapping[str, Any] | None:
        """Return the last two hours; ``None`` if no worker has told of them within *timeout*."""
        with self._changed:
            self._want()
            self._history_until = self._clock() + HISTORY_SECONDS
            self._changed.wait_for(lambda: self._bulletin.history is not None, timeout)
            return self._bulletin.history

    def stale_seconds(self, bulletin: Bulletin) -> float | None:
        """Return the age of *bulletin* where newer ones should have come; ``None``: it is new."""
        age = self._clock() - bulletin.taken_at
        late = age > 3 * max(self.interval, ANSWER_SECONDS)
        return round(age, 1) if bulletin.problem or late else None

    def _want(self) -> None:
        """Have the workers asked for a while; called under the lock."""
        self._wanted_until = self._clock() + INTEREST_SECONDS
        if self._thread is None:
            # A daemon: a broker that hangs must not keep a program from ending.
            self._thread = threading.Thread(
                target=self._run, name="celery-budgets-news", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        while True:
            began = self._clock()
            bulletin = self._round()
            with self._changed:
                self._bulletin = bulletin
                self._changed.notify_all()
                if self._clock() > self._wanted_until:
                    self._thread = None
                    return
            threading.Event().wait(max(0.0, self.interval - (self._clock() - began)))

    def _round(self) -> Bulletin:
        """Ask once, and return what is known now."""
        before = self._bulletin
        number = before.number + 1
        try:
            answers = self._inspection.ask(ANSWER_SECONDS)
            status = Overview.of(answers, settings_of(self._app).lanes).to_json()
            found = replace(
                before, number=number, status=status, text=json.dumps(status),
                taken_at=self._clock(), problem="",
            )  # fmt: skip
            found = self._with_history(self._with_kills(self._with_limits(found), answers))
        except Exception as exc:
            # Each transport has errors of its own. The next round may succeed.
            problem = f"the broker does not answer ({' '.join(str(exc).split())})"
            if not before.problem:
                logger.warning("budgets.page_without_news: %s", problem)
            return replace(before, number=number, problem=problem)
        if before.problem:
            logger.info("budgets.page_has_news")
        return found

    def _with_limits(self, found: Bulletin) -> Bulletin:
        limits = self._limits.look()
        if limits is found.limits:
            return found
        return replace(found, limits=limits, limits_number=found.number)

    def _with_kills(self, found: Bulletin, answers: Replies) -> Bulletin:
        """Ask for the kills where a worker has more than before, and now and then anyway."""
        seen = {name: answer.get("kills", 0) for name, answer in answers.by_worker.items()}
        now = self._clock()
        if seen == self._kills_seen and now - self._kills_at < KILLS_SECONDS:
            return found
        listed, _ = kills(self._app, self._inspection, ANSWER_SECONDS)
        self._kills_at, self._kills_seen = now, seen
        told = _told(listed)
        if told == found.kills:
            return found
        return replace(found, kills=told, kills_number=found.number)

    def _with_history(self, found: Bulletin) -> Bulletin:
        now = self._clock()
        if now > self._history_until or now - self._history_at < HISTORY_SECONDS:
            return found
        history = ask_history(self._inspection, ANSWER_SECONDS)
        self._history_at = now
        return replace(found, history=history)


def _told(listed: list[Kill]) -> dict[str, Any]:
    """Return kills as JSON values: grouped by their place, and the last ones."""
    return {
        "total": len(listed),
        "groups": [
            {
                "kills": group.kills, "where": group.where, "task": group.task,
                "outcome": group.outcome, "last": group.last.to_json(),
            }
            for group in grouped(listed)[:MOST_GROUPS]
        ],
        "last": [
            {name: value for name, value in kill.to_json().items() if name != "stack"}
            for kill in listed[: -MOST_KILLS - 1 : -1]
        ],
    }  # fmt: skip
