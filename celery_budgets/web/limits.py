"""``LimitNews``: what the page knows of limits over the fleet, which stand in their own Redis.

They are read seldom where that takes long: to find the keys of a limit is to look through all
names of that Redis.

Runs in the process that serves the page, in the thread of :mod:`celery_budgets.web.news`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from celery_budgets.config.settings import settings_of
from celery_budgets.sending.limits.overview import LimitView, overview

__all__ = ["LimitNews"]

#: How old they may be, seconds.
LIMITS_SECONDS = 4.0
#: Longest share of the time that is spent on reading them.
SHARE = 0.02
#: Most limits and keys that are told, and most holders of each.
MOST_LIMITS = 100
MOST_HOLDERS = 20


class LimitNews:
    """Reads the limits of *app*, now and then.

    Args:
        app: The Celery app.
        clock: Returns monotonic seconds.
    """

    def __init__(self, app: Any, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock
        self._look_at = float("-inf")
        #: What was read last: ``limits``, how many ``more`` there are, and the ``problem``, if any.
        self.told: Mapping[str, Any] = {"limits": [], "more": 0, "problem": ""}

    def look(self) -> Mapping[str, Any]:
        """Read them if it is time, and return what is known; never raise."""
        began = self._clock()
        if began >= self._look_at and _has_limits(self._app):
            try:
                self.told = _told(overview(self._app))
            except Exception as exc:
                # Its Redis may be away while the broker answers.
                self.told = {**self.told, "problem": " ".join(str(exc).split())}
            spent = 0.0 if self.told["problem"] else self._clock() - began
            self._look_at = began + max(LIMITS_SECONDS, spent / SHARE)
        return self.told


def _has_limits(app: Any) -> bool:
    settings = settings_of(app)
    of_lanes = any(lane.fleet for lane in settings.lanes.values())
    return bool(settings.limits) or of_lanes or settings.fleet_concurrency is not None


def _told(views: list[LimitView]) -> dict[str, Any]:
    """Return *views* as ``celery lanes limits --json`` prints them; of very many those in need."""
    if len(views) > MOST_LIMITS:
        views = sorted(views, key=attrgetter("waiting", "in_use"), reverse=True)
    limits = []
    for view in views[:MOST_LIMITS]:
        told = view.to_json()
        told["more_holders"] = max(0, len(told["holders"]) - MOST_HOLDERS)
        told["holders"] = list(told["holders"][:MOST_HOLDERS])
        limits.append({**told, "title": view.title})
    return {"limits": limits, "more": max(0, len(views) - MOST_LIMITS), "problem": ""}
