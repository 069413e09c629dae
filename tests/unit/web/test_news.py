"""What the page knows: one question per interval, however many look on."""

from __future__ import annotations

import threading

import pytest

from celery_budgets.model.kill import Kill
from celery_budgets.web import news as news_module
from celery_budgets.web.news import News
from tests.support.waiting import wait_until

KILL = Kill(1000.0, "hang", "id-1", "quick", "a@h", "hard_time_limit", None)


@pytest.fixture
def news(app, workers, monkeypatch) -> News:
    monkeypatch.setattr(news_module, "INTEREST_SECONDS", 0.3)
    return News(app, 0.05, inspection=workers)


def test_nobody_is_asked_before_somebody_looks(news, workers):
    """And nobody a while after the last has gone."""
    assert workers.asked == []
    assert news.latest().status["workers"] == ["a@h"]
    wait_until(lambda: news._thread is None, "it has stopped asking")
    before = len(workers.asked)
    assert news.latest().number > 1
    assert len(workers.asked) > before


def test_many_who_look_on_are_one_question(news, workers):
    """Each round has one number, and all get the same."""
    told: list[list[int]] = []

    def look() -> None:
        numbers, number = [], 0
        for _ in range(4):
            bulletin = news.after(number, 5.0)
            assert bulletin is not None
            number = bulletin.number
            numbers.append(number)
        told.append(numbers)

    threads = [threading.Thread(target=look) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 20
    highest = max(numbers[-1] for numbers in told)
    assert workers.asked.count("budgets") <= highest + 1


def test_a_lost_broker_leaves_the_last_news(news, workers):
    """With their age, and why there are no newer ones; they go on when it is back."""
    first = news.latest()
    assert news.stale_seconds(first) is None
    workers.away = OSError("gone\naway")
    bulletin = wait_until(lambda: (b := news.latest()).problem and b, "it is noticed")
    assert bulletin.status == first.status
    assert bulletin.problem == "the broker does not answer (gone away)"
    assert news.stale_seconds(bulletin) is not None
    workers.away = None
    wait_until(lambda: not news.latest().problem, "it goes on")


def test_kills_are_asked_for_when_there_are_more(news, workers):
    """Not in each round: their stacks are long."""
    assert news.latest().kills == {"total": 0, "groups": [], "last": []}
    news.after(3, 5.0)
    assert workers.asked.count("lanes_kills") == 1
    workers.kills.append(KILL)
    told = wait_until(lambda: (b := news.latest()).kills["total"] and b, "the kill is told")
    (group,) = told.kills["groups"]
    assert (group["kills"], group["where"], group["last"]["task_id"]) == (1, "unknown", "id-1")
    assert [kill["task_id"] for kill in told.kills["last"]] == ["id-1"]
    assert workers.asked.count("lanes_kills") == 2


def test_the_history_is_asked_for_by_who_wants_it(news, workers):
    """And not again for half a minute."""
    news.after(2, 5.0)
    assert "lanes_history" not in workers.asked
    history = news.history()
    assert history["lanes"]["quick"]["succeeded"][-2:] == [1.0, 2.0]
    news.after(news.latest().number + 2, 5.0)
    assert news.history() is not None
    assert workers.asked.count("lanes_history") == 1
