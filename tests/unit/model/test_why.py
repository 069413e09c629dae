"""The sentence about a call, and its form for scripts."""

from __future__ import annotations

import dataclasses
from time import time

import pytest

from celery_budgets.model.why import Cause, Why


def test_the_closed_list():
    """Scripts compare with these words; one more or less is a decision."""
    assert [cause.value for cause in Cause] == [
        "running", "lane", "global", "limit", "limit_unknown", "rate", "memory", "paused", "eta",
        "twin", "at_broker", "no_worker", "retry", "ended", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_has_a_sentence_and_a_remedy(cause):
    """No placeholder is left in either, known names or not."""
    for why in (Why("4f1c", cause), Why("4f1c", cause, lane="critic", limit="llm")):
        assert str(why).startswith("4f1c ")
        assert why.remedy
        assert not set("{}") & set(str(why) + why.remedy)
    assert why.cause == cause.value


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"position": 0}, "; none start before it"),
        ({"position": 1}, "; 1 starts before it"),
        ({"position": 12}, "; about 12 start before it"),
        ({"starts_in": 12.34}, "; starts in about 12.3 s"),
        ({"detail": "its lane is full"}, "; its lane is full"),
        ({"certain": False}, "4f1c probably waits at the broker"),
    ],
)
def test_the_sentence(facts, words):
    """Numbers as an operator reads them."""
    assert words in str(Why("4f1c", Cause.AT_BROKER, lane="critic", **facts))


def test_it_says_for_how_long():
    """Of a call that has ended, the detail says when."""
    since = time() - 61
    assert "for 61 s" in str(Why("4f1c", Cause.LANE, since=since))
    assert "for 61 s" not in str(Why("4f1c", Cause.ENDED, since=since))


def test_it_goes_to_json_and_back():
    """With what a later version may add; a cause that this version does not know is an error."""
    why = Why("4f1c", Cause.RATE, limit="tools.fetch 10/m", position=3, starts_in=18.0)
    data = why.to_json()
    assert data["text"] == str(why)
    assert data["remedy"] == why.remedy
    assert Why.from_json({**data, "later": 1}) == why
    with pytest.raises(ValueError, match="sulking"):
        Why.from_json({**data, "cause": "sulking"})


def test_it_is_frozen():
    """A value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Why("4f1c", Cause.LANE).position = 1
