"""What the page knows of limits: read now and then, bounded, and the last where Redis is away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from celery import Celery

from celery_budgets import Budgets, Lane, Limit
from celery_budgets.sending.limits.overview import Holder, LimitView
from celery_budgets.web import limits as limits_module
from celery_budgets.web.limits import LIMITS_SECONDS, MOST_HOLDERS, MOST_LIMITS, LimitNews

VIEW = LimitView("api", "", 0, 1, None, None, 0, None, 0.0, (), None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def read(monkeypatch) -> dict[str, Any]:
    """What is read: the views or the error, how long it takes, and how often it was."""
    state: dict[str, Any] = {"views": [VIEW], "seconds": 0.0, "times": 0}

    def overview(app: Any) -> list[LimitView]:
        state["times"] += 1
        clock.now += state["seconds"]
        if isinstance(state["views"], Exception):
            raise state["views"]
        return state["views"]

    clock = state["clock"] = Clock()
    monkeypatch.setattr(limits_module, "overview", overview)
    return state


@pytest.fixture
def news(read) -> LimitNews:
    made = Celery("limits", set_as_current=False, broker="memory://")
    Budgets(made, lanes=[Lane("quick", 2)], limits=[Limit("api", 1)])
    return LimitNews(made, read["clock"])


def test_an_app_without_limits_is_not_asked(app, read):
    """It may have no Redis."""
    assert LimitNews(app, read["clock"]).look()["limits"] == []
    assert read["times"] == 0


def test_they_are_read_now_and_then(news, read):
    """And seldom where that takes long."""
    first = news.look()
    assert first["limits"][0]["title"] == "api"
    assert news.look() is first
    read["clock"].now += LIMITS_SECONDS
    read["seconds"] = 1.0
    assert news.look() is not first
    read["clock"].now += 40
    news.look()
    assert read["times"] == 2
    read["clock"].now += 10
    news.look()
    assert read["times"] == 3


def test_the_last_stay_while_redis_is_away(news, read):
    """With what is wrong."""
    news.look()
    read["clock"].now += LIMITS_SECONDS
    read["views"], read["seconds"] = OSError("nobody\nthere"), 2.0
    told = news.look()
    assert told["problem"] == "nobody there"
    assert told["limits"][0]["name"] == "api"
    read["clock"].now += LIMITS_SECONDS
    read["views"] = [VIEW]
    assert news.look()["problem"] == ""


def test_of_very_many_those_in_need(news, read):
    """Who waits longest in line comes first; holders are bounded too."""
    holders = tuple(Holder(f"h:{n}", 1, 1.0, offered=False) for n in range(MOST_HOLDERS + 5))
    busy = replace(VIEW, key="busy", waiting=7, holders=holders)
    read["views"] = [replace(VIEW, key=str(n)) for n in range(MOST_LIMITS + 9)] + [busy]
    told = news.look()
    assert (len(told["limits"]), told["more"]) == (MOST_LIMITS, 10)
    first = told["limits"][0]
    assert (first["key"], len(first["holders"]), first["more_holders"]) == ("busy", MOST_HOLDERS, 5)
